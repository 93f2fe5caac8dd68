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
    """A unit of amounts, with its multiples by their suffixes."""

    factors: Mapping[str, int]  #: of several for one multiple, the first is printed
    example: str

    def parse(self, text: str) -> int | None:
        """Return the amount, or None if the text is not an amount."""
        suffixes = "|".join(self.factors)
        match = re.fullmatch(rf"([0-9]{{1,18}})\s*({suffixes})?", text.strip())
        if match is None:
            return None
        return int(match[1]) * self.factors.get(match[2], 1)

    def format(self, amount: int) -> str:
        """Return the shortest text that `parse` understands."""
        for suffix, factor in sorted(self.factors.items(), key=lambda each: -each[1]):
            if amount and amount % factor == 0:
                return f"{amount // factor}{suffix}"
        return str(amount)


COUNT = Unit(factors={}, example="a whole number")
SECONDS = Unit(
    factors={"s": 1, "m": 60, "h": 3600, "d": 86_400},
    example="a time like 90, 15m, 24h or 7d",
)
BYTES = Unit(
    # Decimal, as in messages, so that a limit of 10G is shown as 10 GB.
    factors={
        "K": 10**3,
        "kB": 10**3,
        "KB": 10**3,
        "KiB": 1 << 10,
        "M": 10**6,
        "MB": 10**6,
        "MiB": 1 << 20,
        "G": 10**9,
        "GB": 10**9,
        "GiB": 1 << 30,
        "T": 10**12,
        "TB": 10**12,
        "TiB": 1 << 40,
    },
    example="a size like 65536, 10G or 64MiB",
)
