"""At which of its addresses another node is tried first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

NODES_MAX = 256


class PeerAddresses:
    """Where nodes were reached last.

    An address that leads nowhere costs each request a second until it is given up, so
    others begin where one got through.
    """

    def __init__(self) -> None:
        self._first_index: dict[tuple[str, ...], int] = {}  #: where it is not the first

    def urls_to_try(self, lan_urls: Sequence[str]) -> Iterator[str]:
        """Yield each address of a node; to ask for another one gives up the last."""
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
