"""Amounts with units and addresses with ports: `15m`, `64M`, `[fd00::1]:47800`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


def host_and_port(host: str, port: int) -> str:
    """Return `HOST:PORT`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_host(text: str) -> bool:
    """Return True if Python can look up the name.

    Each label of a name has 1 to 63 characters, so `pi4..local` is not a host.
    """
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit of amounts, with the letters for its multiples."""

    factors: Mapping[str, int]
    example: str
    ending: str = ""  #: may follow a letter, without effect

    def parse(self, text: str) -> int | None:
        """Return the amount, or None if the text is not an amount."""
        letters = "".join(self.factors)
        pattern = (
            rf"([0-9]{{1,18}})\s*(?:([{letters}])(?:{self.ending})?)?"
            if letters
            else ""
        )
        match = re.fullmatch(pattern or r"([0-9]{1,18})()", text.strip())
        if match is None:
            return None
        return int(match[1]) * self.factors.get(match[2], 1)

    def format(self, amount: int) -> str:
        """Return the shortest text that `parse` understands."""
        for letter, factor in sorted(self.factors.items(), key=lambda each: -each[1]):
            if amount and amount % factor == 0:
                return f"{amount // factor}{letter}"
        return str(amount)


COUNT = Unit(factors={}, example="a whole number")
SECONDS = Unit(
    factors={"s": 1, "m": 60, "h": 3600, "d": 86_400},
    example="a time like 90, 15m, 24h or 7d",
)
BYTES = Unit(
    factors={"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40},
    example="a size like 65536, 64M or 10G",
    ending="iB",
)
