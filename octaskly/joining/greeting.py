"""The first message of each side of a pairing: who it is, before anybody is trusted.

It has a fixed size and fixed fields, so that nothing of a stranger is parsed that has
a length, a nesting or an encoding of its own choice.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from octaskly import __version__
from octaskly.core.protocol.messages import PROTOCOL_VERSION, VERSION_MIN
from octaskly.errors import PairingFailed
from octaskly.trust.node_key import node_id_of

PAIRING_VERSION: Final = 1
CLOCK_SKEW_MS_MAX: Final = 5 * 60_000  #: tokens and times in the log suffer beyond that
KEY_BYTES: Final = 32
_NAME_BYTES: Final = 96
_SOFTWARE_BYTES: Final = 16
_MAGIC: Final = b"octaskly-pairing"
_LAYOUT: Final = struct.Struct(
    f"!{len(_MAGIC)}sBBBBHQ{KEY_BYTES}s{_NAME_BYTES}s{_SOFTWARE_BYTES}s"
)
GREETING_BYTES: Final = _LAYOUT.size
_WORD: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9.+~-]*")


class RefusalReason(IntEnum):
    """Why the other side goes no further."""

    NONE = 0
    NO_SLOT = 1
    EXPIRED = 2
    USED = 3
    BUSY = 4


class PairingRefused(PairingFailed):
    """The other side goes no further; another one may."""

    def __init__(self, why: RefusalReason, name: str) -> None:
        what, cause = _REFUSAL_TEXTS[why]
        super().__init__(
            f"{name} {what}",
            cause=cause,
            hint="octaskly invite    on a member makes a new code",
        )
        self.reason = why


_REFUSAL_TEXTS: Final = {
    RefusalReason.NO_SLOT: (
        "has no open invite of that number",
        "the first number of the code is wrong, or the code is another member's",
    ),
    RefusalReason.EXPIRED: (
        "does not take that code any more",
        "the invite has expired",
    ),
    RefusalReason.USED: (
        "does not take that code any more",
        "it was tried before, and a code is good for one attempt",
    ),
    RefusalReason.BUSY: ("lets nobody in at this moment", "too many ask at once"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What one side says of itself; believed only once the pairing is confirmed."""

    name: str  #: of the node
    key: bytes  #: its public key, 32 bytes
    wall_ms: int  #: what its clock says
    slot_or_port: int = (
        0  #: the slot that is asked for; or the peer port that is offered
    )
    refusal: RefusalReason = RefusalReason.NONE
    software: str = __version__

    def pack(self) -> bytes:
        """Return the message."""
        return _LAYOUT.pack(
            _MAGIC,
            PAIRING_VERSION,
            PROTOCOL_VERSION,
            VERSION_MIN,
            self.refusal,
            self.slot_or_port,
            self.wall_ms,
            self.key,
            self.name.encode()[:_NAME_BYTES],
            self.software.encode()[:_SOFTWARE_BYTES],
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return what a message says.

        Raises:
            PairingFailed: no node of ours would say that, or a newer one did.
        """
        (
            magic,
            pairing,
            newest,
            oldest,
            refusal,
            number,
            wall_ms,
            key,
            name,
            software,
        ) = _LAYOUT.unpack(data)
        if magic != _MAGIC:
            raise PairingFailed(
                "what answers there is no node that invites",
                hint="octaskly invite    on a member shows where it listens",
            )
        software = _read_word(software)
        is_foreign = min(newest, PROTOCOL_VERSION) < max(oldest, VERSION_MIN)
        if pairing != PAIRING_VERSION or is_foreign:
            raise PairingFailed(
                f"the other machine runs Octaskly {software}, and this one "
                f"{__version__}: they do not understand each other",
                hint="octaskly --version    on both, then upgrade the older one",
            )
        if refusal > max(RefusalReason):
            raise PairingFailed("the other side refuses for an unknown reason")
        return cls(
            name=_read_word(name),
            key=key,
            wall_ms=wall_ms,
            slot_or_port=number,
            refusal=RefusalReason(refusal),
            software=software,
        )

    @property
    def node_id(self) -> str:
        """Id of the node that it speaks for."""
        return node_id_of(self.key)

    def require_compatible(self, now_ms: int) -> None:
        """Make sure that a pairing may go on.

        Raises:
            Refused: the other side refuses.
            PairingFailed: the clocks differ too much.
        """
        if self.refusal is not RefusalReason.NONE:
            raise PairingRefused(self.refusal, self.name)
        apart_ms = abs(self.wall_ms - now_ms)
        if apart_ms > CLOCK_SKEW_MS_MAX:
            raise PairingFailed(
                f"the clocks of this machine and {self.name} are "
                f"{apart_ms // 60_000} minutes apart",
                cause="tokens and times would be wrong; at most 5 minutes are allowed",
                hint="timedatectl    on both shows which clock is wrong; "
                "the code is still good",
            )


def _read_word(raw: bytes) -> str:
    """Return a field that anybody may have filled, if it is harmless."""
    word = raw.rstrip(b"\0")
    if not _WORD.fullmatch(word):
        raise PairingFailed("the other side says what no node of ours would say")
    return word.decode("ascii")
