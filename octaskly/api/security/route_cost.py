"""Cost of routes: the resources of a node that a request uses, by route.

The server enforces it for all routes alike: `quotas.py` bounds the expensive
requests in progress and the memory of responses, and the rate limit charges the units.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from octaskly.api.schemas.query import LIMIT_DEFAULT, LIMIT_MAX
from octaskly.api.schemas.request_bodies import BATCH_MAX

ROWS_PER_UNIT: Final = 10
CHEAP_ROWS: Final = LIMIT_DEFAULT  #: a list of so many rows is not expensive
SEARCH_UNITS: Final = 30  #: of the rate limit; a search takes up to 30 ms
HEAVY_UNITS: Final = 100  #: of a request that takes milliseconds of the event loop
ROW_BYTES: Final = 2048  #: of a row of a list
BYTES_PER_UNIT: Final = ROWS_PER_UNIT * ROW_BYTES  #: of a response
NODES_EXPECTED: Final = 100  #: in a mesh, until they are counted
ID_BYTES: Final = 64  #: of an id of a task

_DIGITS: Final = re.compile(r"[0-9]{1,16}")


class CostKind(Enum):
    """The limit on requests of a route in progress; all count in the rate limit."""

    CHEAP = auto()  #: nothing: a small response, which takes a few milliseconds
    EXPENSIVE = auto()  #: one client may have few of them in progress
    STREAM = auto()  #: a response in parts; the connections and `OpenStreams`
    UPLOAD = auto()  #: a large body; the memory for bodies, or the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost of the requests of one route."""

    kind: CostKind
    units: int = 1  #: of the rate limit, besides those of rows
    rows_parameter: str = ""  #: query parameter with the number of rows, if any
    rows_default: int = 0  #: number of rows without it
    rows_max: int = 0  #: highest valid number of rows
    row_bytes: int = ROW_BYTES
    reads_all: bool = False  #: also for a short page, so each is expensive
    search_parameters: frozenset[str] = frozenset()
    """Query parameters that make few rows expensive, too."""

    def rows(self, query: Mapping[str, str]) -> int:
        """Return the number of rows that a request asks for.

        An invalid number counts as the default: the request will be refused.
        """
        name = self.rows_parameter
        if not name or name not in query:
            return self.rows_default
        text = query[name]
        asked = int(text) if _DIGITS.fullmatch(text) else self.rows_default
        return asked if asked <= self.rows_max else self.rows_default

    def rate_units(
        self, query: Mapping[str, str], rows: int | None = None, size_bytes: int = 0
    ) -> int:
        """Return the units that the rate limit charges for a request.

        Args:
            query: The parameters of the request.
            rows: Number of rows; by default as many as the response may have.
            size_bytes: Size of the response, once it is known.
        """
        least = SEARCH_UNITS if self._is_search(query) else self.units
        count = self.rows(query) if rows is None else rows
        return max(least, count // ROWS_PER_UNIT, size_bytes // BYTES_PER_UNIT)

    def response_bytes(self, query: Mapping[str, str]) -> int:
        """Return the bytes of memory to reserve for the response to a request."""
        return self.rows(query) * self.row_bytes

    def is_expensive(self, query: Mapping[str, str]) -> bool:
        """Return True if a request counts among the expensive ones in progress."""
        if self.kind is not CostKind.EXPENSIVE:
            return False
        is_short = bool(self.rows_parameter) and self.rows(query) <= CHEAP_ROWS
        return self.reads_all or not is_short or self._is_search(query)

    def _is_search(self, query: Mapping[str, str]) -> bool:
        return not self.search_parameters.isdisjoint(query)


CHEAP: Final = Cost(kind=CostKind.CHEAP)
EXPENSIVE: Final = Cost(kind=CostKind.EXPENSIVE, units=10)
STREAM: Final = Cost(kind=CostKind.STREAM)
UPLOAD: Final = Cost(kind=CostKind.UPLOAD)
LIST: Final = Cost(
    kind=CostKind.EXPENSIVE,
    rows_parameter="limit",
    rows_default=LIMIT_DEFAULT,
    rows_max=LIMIT_MAX,
    search_parameters=frozenset({"name", "label", "text"}),
)
"""A page of `limit` rows."""

TREE: Final = Cost(
    kind=CostKind.EXPENSIVE,
    units=10,
    rows_parameter="limit",
    rows_default=LIMIT_DEFAULT,
    rows_max=LIMIT_MAX,
    reads_all=True,
)
"""A page of a tree, whose manifest of up to 16 MiB is read for it."""

NODE_TREE: Final = replace(TREE, kind=CostKind.CHEAP)
"""The same for another node, where the client pays for it."""

STORAGE: Final = replace(TREE, units=SEARCH_UNITS)
"""A page of what takes up room on a node, which looks at many files on its disk."""

IDS: Final = Cost(
    kind=CostKind.CHEAP,
    rows_parameter="count",
    rows_default=1,
    rows_max=BATCH_MAX,
    row_bytes=ID_BYTES,
)
"""`count` ids for tasks."""

PER_NODE: Final = Cost(
    kind=CostKind.CHEAP, rows_default=NODES_EXPECTED, rows_max=NODES_EXPECTED
)
"""A row for each node of the mesh; few have as many as are expected."""

MESH_CHANGE: Final = Cost(kind=CostKind.CHEAP, units=1000)
"""A change that is sent to all nodes; the rate limit allows an admin 600 a minute."""

SECRET_CHANGE: Final = Cost(kind=CostKind.CHEAP, units=20_000)
"""A change of the mesh secret, for which each node makes its certificates again.

That takes a thread 50 ms; the rate limit allows an admin 30 a minute.
"""

METRICS: Final = EXPENSIVE
"""All metrics of a node, which each node counts for itself."""
