"""Greeting: the first, unauthenticated message of each side of a pairing.

It has a fixed size and fixed fields, so an untrusted sender cannot choose a length, a
nesting or an encoding that this node must parse.
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
CLOCK_SKEW_MS_MAX: Final = 5 * 60_000  #: beyond it, tokens and log times are wrong
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
    """Reason for which the other side refuses a pairing."""

    NONE = 0
    NO_SLOT = 1
    EXPIRED = 2
    USED = 3
    BUSY = 4


class PairingRefused(PairingFailed):
    """A member refuses the pairing; another member may accept it."""

    def __init__(self, why: RefusalReason, name: str) -> None:
        text, cause = _REFUSAL_TEXTS[why]
        super().__init__(
            f"{name} {text}",
            cause=cause,
            hint="octaskly invite    on a member creates a new code",
        )
        self.reason = why


_REFUSAL_TEXTS: Final = {
    RefusalReason.NO_SLOT: (
        "has no open invite with that number",
        "the first number of the code is wrong, or the code is another member's",
    ),
    RefusalReason.EXPIRED: (
        "no longer accepts that code",
        "the invite has expired",
    ),
    RefusalReason.USED: (
        "no longer accepts that code",
        "it was already tried, and a code is valid for one attempt",
    ),
    RefusalReason.BUSY: (
        "does not admit machines now",
        "too many machines are joining at once",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """Claims of one side; untrusted until the pairing is confirmed."""

    name: str  #: of the node
    key: bytes  #: the node's public key, 32 bytes
    wall_ms: int  #: the node's wall clock
    slot_or_port: int = 0  #: from the joiner: the slot; from the member: its peer port
    refusal: RefusalReason = RefusalReason.NONE
    software: str = __version__

    def pack(self) -> bytes:
        """Return the greeting as bytes."""
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
        """Parse a greeting.

        Raises:
            PairingFailed: It is malformed, or of an incompatible version.
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
                "the other machine is not an Octaskly node with an open invite",
                hint="octaskly invite    on a member shows where it listens",
            )
        software = _read_word(software)
        is_foreign = min(newest, PROTOCOL_VERSION) < max(oldest, VERSION_MIN)
        if pairing != PAIRING_VERSION or is_foreign:
            raise PairingFailed(
                f"the other machine runs Octaskly {software}, and this one "
                f"{__version__}: these versions are not compatible",
                hint="octaskly --version    on both, then upgrade the older one",
            )
        if refusal > max(RefusalReason):
            raise PairingFailed(
                "the other machine refuses the connection for an unknown reason"
            )
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
        """Id of the node that `key` belongs to."""
        return node_id_of(self.key)

    def require_compatible(self, now_ms: int) -> None:
        """Check that the pairing may continue.

        Raises:
            PairingRefused: The other side refuses.
            PairingFailed: The clocks differ too much.
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
                "the code is still valid",
            )


def _read_word(raw: bytes) -> str:
    """Return an untrusted text field; raise PairingFailed unless it is a plain word."""
    word = raw.rstrip(b"\0")
    if not _WORD.fullmatch(word):
        raise PairingFailed("the other machine sent an invalid greeting")
    return word.decode("ascii")
