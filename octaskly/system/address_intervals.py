"""A minimum interval between admitted connections of one remote address."""

from __future__ import annotations

import math
from ipaddress import IPv6Address, ip_address
from typing import Final

INTERVAL_S: Final = 2.0
ADDRESSES_MAX: Final = 4096
_IPV6_HOST_BITS: Final = 64


class AddressIntervals:
    """Decides which connections to admit while there are too many.

    A machine that connects once is admitted however many connections others make. An
    IPv6 network of 64 bits counts as one address: a machine can have them all.
    """

    def __init__(self) -> None:
        self._admitted_s: dict[str | int, float] = {}  #: the latest address is last

    def admit(self, host: str, now_s: float) -> bool:
        """Return True, and remember it, if an address was not admitted for a while."""
        key = _network_of(host)
        last_s = self._admitted_s.pop(key, -math.inf)
        is_due = now_s - last_s >= INTERVAL_S
        self._admitted_s[key] = now_s if is_due else last_s
        if len(self._admitted_s) > ADDRESSES_MAX:
            del self._admitted_s[next(iter(self._admitted_s))]
        return is_due


def _network_of(host: str) -> str | int:
    address = ip_address(host)
    if not isinstance(address, IPv6Address) or address.ipv4_mapped is not None:
        return host
    return int(address) >> _IPV6_HOST_BITS
