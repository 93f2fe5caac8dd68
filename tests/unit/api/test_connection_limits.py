"""Who makes room for a new connection, and who is refused."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field

import pytest

from octaskly.api.problems import Problem
from octaskly.api.server.connection_limits import (
    DESCRIPTORS_RESERVED,
    IDLE_S_MIN,
    PLAIN_LISTENERS,
    POOL_SHARES,
    WAITING_MAX,
    ConnectionKind,
    ConnectionLimits,
)
from octaskly.config.settings import LimitOptions
from tests.support.set_clock import SetClock

PER_OWNER = 4
KIND = ConnectionKind.UNAUTHENTICATED


@dataclass(eq=False)
class Connection:
    """A connection that records that it was closed."""

    is_open: bool = True

    def abort(self) -> None:
        self.is_open = False


@dataclass
class Api:
    """The limits of an API, and its connections in order of arrival."""

    clock: SetClock = field(default_factory=SetClock)
    subject_max: int = PER_OWNER
    opened: list[Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        limits = LimitOptions(
            connections_per_address=PER_OWNER,
            connections_per_subject=self.subject_max,
        )
        self.limits = ConnectionLimits(limits, self.clock)

    def connect(self, owner: str) -> bool:
        """Open a connection of an owner as a listener does; return False if refused."""
        if not self.limits.has_place(KIND, owner):
            return False
        self.opened.append(Connection())
        assert self.limits.add_connection(self.opened[-1], KIND, owner) is None
        return True


def test_a_flood_of_one_owner_is_refused_and_closes_none_of_its_connections() -> None:
    """Each closed one would have cost a transport."""
    api = Api()
    admitted = [api.connect("eve") for _ in range(10 * PER_OWNER)]
    assert sum(admitted) == PER_OWNER
    assert all(each.is_open for each in api.opened)
    assert api.connect("ana")


def test_an_idle_connection_makes_room_for_a_new_one_of_its_owner() -> None:
    """The oldest does, so a user who left many open is not locked out."""
    api = Api()
    for _ in range(PER_OWNER):
        api.connect("eve")
    api.clock.now_s += IDLE_S_MIN
    assert api.connect("eve")
    assert [each.is_open for each in api.opened] == [False, *[True] * PER_OWNER]


def test_a_connection_that_was_just_answered_makes_no_room() -> None:
    """It has the time to send its next request."""
    api = Api()
    for _ in range(PER_OWNER):
        api.connect("eve")
    api.clock.now_s += IDLE_S_MIN
    for each in api.opened:
        api.limits.set_serving(each, is_serving=True)
        api.limits.set_serving(each, is_serving=False)
    assert not api.connect("eve")


def test_a_flood_of_one_subject_takes_the_places_of_strangers() -> None:
    """A refused connection keeps its place, so the next ones cost no transport."""
    api = Api(subject_max=1)
    first, *others = (api.connect("eve") and api.opened[-1] for _ in range(PER_OWNER))
    assert first
    api.limits.authenticate(first, "eve's token")
    for each in others:
        assert each
        with pytest.raises(Problem, match="Too many connections"):
            api.limits.authenticate(each, "eve's token")

    assert api.connect("eve")
    assert not api.connect("eve")
    assert api.connect("ana")
    assert all(each.is_open for each in api.opened)


def test_connections_wait_on_descriptors_that_the_pools_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So those that wait for a place never take one from another."""

    def waiting_max(descriptors: int) -> int:
        monkeypatch.setattr(
            "octaskly.api.server.connection_limits.resource.getrlimit",
            lambda _: (descriptors, descriptors),
        )
        return ConnectionLimits(LimitOptions(), SetClock()).waiting_max()

    pools = int(LimitOptions().connections_max * sum(POOL_SHARES.values()))
    assert waiting_max(3) == 1
    assert waiting_max(DESCRIPTORS_RESERVED + pools + 30) == 30 // PLAIN_LISTENERS
    assert waiting_max(resource.RLIM_INFINITY) == WAITING_MAX
