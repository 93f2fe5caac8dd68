"""Order in which the addresses of another node are tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

NODES_MAX = 256


class PeerAddresses:
    """The last address of each node that worked.

    An unreachable address costs each request about a second until its timeout, so later
    requests start with the address that worked.
    """

    def __init__(self) -> None:
        self._first_index: dict[tuple[str, ...], int] = {}  #: start index; default 0

    def urls_to_try(self, lan_urls: Sequence[str]) -> Iterator[str]:
        """Yield the addresses of a node; take the next one if one fails."""
        urls = tuple(lan_urls)
        begin = self._first_index.get(urls, 0)
        for place in (*range(begin, len(urls)), *range(begin)):
            if place != begin:
                self._remember_first(urls, place)
            yield urls[place]

    def _remember_first(self, urls: tuple[str, ...], index: int) -> None:
        if len(self._first_index) >= NODES_MAX:
            self._first_index.clear()
        self._first_index[urls] = index
