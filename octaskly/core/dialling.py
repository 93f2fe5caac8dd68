"""A place to dial, and a dial under way; `hints` decides when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from octaskly.core.model import Address, NodeId

FORGET_S: Final = 7 * 86_400.0  #: for how long an absent peer is dialled
FORGET_ADVERT_S: Final = 60.0
"""For how long what was only seen: that anybody can say, and who is there says it again
each time that it is asked, which a dispatcher does three times in that time."""


@dataclass(slots=True)
class Place:
    """One place to dial."""

    node: NodeId | None
    addresses: tuple[Address, ...]
    since_s: float  #: when it was heard of first, or lost
    next_s: float
    heard_s: float  #: when it was heard of last
    is_known: bool = field(kw_only=True)  #: as a peer, or by `--join`

    def is_over(self, now_s: float) -> bool:
        """Whether it is dialled no more."""
        if self.is_known:
            return now_s - self.since_s > FORGET_S
        return now_s - self.heard_s > FORGET_ADVERT_S


@dataclass(slots=True)
class Dialled:
    """A dial that has neither met anybody nor failed."""

    node: NodeId | None
    until_s: float  #: then it is waited for no longer
    is_in_sight: bool = False  #: not only remembered
    is_dispatcher: bool = False
