"""One-time codes for dashboard sessions."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import Final

from octaskly.ports.tokens import Principal

CODE_TTL_S: Final = 60.0
CODES_MAX: Final = 16
"""Above this number, the oldest code is deleted, so that the newest one works."""

CODE_CHARS_MAX: Final = 128
_RANDOM_BYTES: Final = 32
ROOT_UID: Final = 0


@dataclass(frozen=True, slots=True)
class OneTimeCode:
    """The principal that created a code, and the user that may redeem it."""

    principal: Principal
    uid: int | None  #: the only user that may redeem it, over loopback; None: any
    expires_s: float  #: on the monotonic clock

    def may_be_redeemed_by(self, uid: int | None) -> bool:
        """Return True if a client may redeem the code.

        Args:
            uid: User of the client of a loopback connection; None if it is unknown.
        """
        # Root redeems a code when it relays for a user, for example into a virtual
        # machine.
        return self.uid is None or uid in (self.uid, ROOT_UID)


class OneTimeCodes:
    """The codes of one node that are not redeemed yet."""

    def __init__(self) -> None:
        self._codes: dict[str, OneTimeCode] = {}

    def create(self, principal: Principal, *, uid: int | None, now_s: float) -> str:
        """Create a code; return its text."""
        code = secrets.token_urlsafe(_RANDOM_BYTES)
        self._codes[code] = OneTimeCode(principal, uid, now_s + CODE_TTL_S)
        if len(self._codes) > CODES_MAX:
            del self._codes[next(iter(self._codes))]
        return code

    def redeem(self, given: str, now_s: float) -> OneTimeCode | None:
        """Redeem a code: delete and return it; None if it is unknown or has expired."""
        found = None
        # Compare all codes, each in constant time, so that the duration reveals
        # nothing.
        for code in self._codes:
            if hmac.compare_digest(code.encode(), given.encode("utf-8", "replace")):
                found = code
        opened = None if found is None else self._codes.pop(found)
        return opened if opened is not None and now_s < opened.expires_s else None
