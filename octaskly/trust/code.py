"""The code of an invite, which one person reads and another types: `7-4821-9375`."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Final, Self

from octaskly.errors import PairingFailed

SLOT_MAX: Final = 99
DIGITS: Final = 8
_FORM: Final = re.compile(r"([1-9][0-9]?)[-\s]+([0-9]{4})[-\s]*([0-9]{4})")


@dataclass(frozen=True, slots=True)
class Code:
    """A slot, which is public, and eight digits, which are not; 26 bits."""

    slot: int  #: tells open invites of one member apart, from 1
    digits: str = field(repr=False)

    @classmethod
    def fresh(cls, slot: int) -> Self:
        """Return a new code for this slot."""
        return cls(slot, f"{secrets.randbelow(10**DIGITS):0{DIGITS}}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the code that somebody typed.

        Raises:
            PairingFailed: it has not the form of one; the text is not repeated.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise PairingFailed(
                "that is no code of an invite",
                hint="octaskly join 7-4821-9375    with the code that "
                "`octaskly invite` shows on a member",
            )
        return cls(int(match[1]), match[2] + match[3])

    def shown(self) -> str:
        """Return the code as people read it."""
        half = DIGITS // 2
        return f"{self.slot}-{self.digits[:half]}-{self.digits[half:]}"

    def password(self) -> bytes:
        """Return what both sides of a pairing must know."""
        return f"{self.slot}-{self.digits}".encode()
