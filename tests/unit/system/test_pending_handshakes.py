"""Which connections may start a handshake while others flood the port."""

from __future__ import annotations

import socket
import weakref

from octaskly.system.pending_handshakes import (
    CROWD_ADDRESSES,
    MEMBERS_MAX,
    AddressIntervals,
    HandshakeLimiter,
    MemberAddresses,
)

OWN = "10.0.0.1"
MEMBER = "10.0.0.2"
TOTAL = 8
PER_ADDRESS = 4
LOCAL = 3


class Connection:
    """A connection, and its other end, which sees that it is shut down."""

    def __init__(self) -> None:
        self.own, self._other = socket.socketpair()
        self._other.setblocking(False)
        for end in (self.own, self._other):
            weakref.finalize(self, end.close)

    @property
    def is_closed(self) -> bool:
        try:
            return self._other.recv(1) == b""
        except BlockingIOError:
            return False


class Port:
    """A limiter, and the connections that came."""

    def __init__(self, *members: str, total_max: int = TOTAL) -> None:
        self.came: dict[str, Connection] = {}
        addresses = MemberAddresses()
        for host in members:
            addresses.record(host)
        self.limiter = HandshakeLimiter(
            total_max=total_max,
            per_address_max=PER_ADDRESS,
            local_max=LOCAL,
            members=addresses,
        )

    @property
    def closed(self) -> list[str]:
        """The connections that were admitted, and had to make room later."""
        return [name for name, connection in self.came.items() if connection.is_closed]

    def admit(self, name: str, host: str) -> bool:
        self.came[name] = Connection()
        return self.limiter.admit(self.connection(name), host, OWN)

    def connection(self, name: str) -> socket.socket:
        return self.came[name].own

    def release(self, name: str, *, is_finished: bool = False) -> None:
        self.limiter.release(self.connection(name), is_finished=is_finished)

    def flood(self, count: int) -> int:
        """Connect from so many strangers; return how many were admitted."""
        return sum(self.admit(f"s{n}", stranger(n)) for n in range(count))


def stranger(number: int) -> str:
    return f"10.9.{number // 250}.{number % 250}"


async def test_a_flood_takes_no_place_of_members() -> None:
    """They start as many handshakes at once as one address may, and keep them."""
    port = Port(MEMBER)
    port.flood(1000)

    admitted = [port.admit(f"m{n}", MEMBER) for n in range(PER_ADDRESS)]
    port.flood(1000)

    assert admitted == [True] * PER_ADDRESS
    assert not any(connection.startswith("m") for connection in port.closed)
    assert len(port.limiter) == TOTAL + PER_ADDRESS


async def test_members_take_no_place_of_each_other() -> None:
    """The oldest handshake of the address with the most makes room."""
    port = Port(*(f"10.0.1.{n}" for n in range(TOTAL)))
    for n in range(TOTAL - 1):
        assert port.admit(f"a{n}", f"10.0.1.{n // PER_ADDRESS}")

    assert port.admit("last", "10.0.1.7")
    assert port.closed == []
    assert port.admit("late", "10.0.1.6")
    assert port.closed == ["a0"]


async def test_one_member_has_a_limit() -> None:
    """More than that are closed at once."""
    port = Port(MEMBER)

    admitted = [port.admit(f"m{n}", MEMBER) for n in range(PER_ADDRESS + 1)]

    assert admitted == [True] * PER_ADDRESS + [False]


async def test_this_machine_has_places_of_its_own() -> None:
    """Neither strangers nor members take them, and it takes none of theirs."""
    port = Port(MEMBER)
    port.flood(1000)

    local = [port.admit(f"l{n}", OWN) for n in range(LOCAL + 1)]

    assert local == [True] * LOCAL + [False]
    assert port.limiter.is_local(port.connection("l0"))
    assert not port.limiter.is_local(port.connection("s0"))
    assert len(port.limiter) == TOTAL + LOCAL


async def test_a_finished_handshake_leaves_its_place() -> None:
    """Also one that was evicted before, which counts no more."""
    port = Port()
    port.flood(TOTAL + 1)
    (evicted,) = port.closed

    for n in range(TOTAL + 1):
        port.release(f"s{n}")
    port.release(evicted)

    assert len(port.limiter) == 0
    assert port.flood(TOTAL // 2) == TOTAL // 2


async def test_few_handshakes_of_many_addresses_are_a_crowd() -> None:
    """They take few places, but a flood can begin and leave them by the thousand."""
    port = Port(total_max=4 * CROWD_ADDRESSES)
    port.flood(CROWD_ADDRESSES)

    assert port.admit("first", stranger(CROWD_ADDRESSES))
    assert not port.admit("second", stranger(CROWD_ADDRESSES))


def test_an_address_that_finishes_nothing_is_admitted_more_and_more_rarely() -> None:
    """One that finishes a handshake starts again."""
    intervals = AddressIntervals()
    admitted = [now_s for now_s in range(200) if intervals.admit("10.0.0.9", now_s)]
    intervals.forget("10.0.0.9")
    again = [now_s for now_s in range(200, 206) if intervals.admit("10.0.0.9", now_s)]

    assert admitted == [0, 2, 6, 14, 30, 62, 126, 190]
    assert again == [200, 202]
    assert intervals.admit("10.0.0.8", 206)


def test_an_address_of_a_member_is_known_in_each_form() -> None:
    """Links show IPv4 and scopes of IPv6 in another form than sockets."""
    members = MemberAddresses()
    for host in ("10.0.0.2", "fe80::2%eth0", "stored by another version"):
        members.record(host)

    assert "::ffff:10.0.0.2" in members
    assert "fe80::2" in members
    assert "10.0.0.3" not in members
    assert "fe80::3" not in members


def test_the_latest_addresses_of_members_are_kept() -> None:
    """A member with many addresses costs little memory."""
    members = MemberAddresses()
    hosts = [f"10.{n // 65536}.{n // 256 % 256}.{n % 256}" for n in range(MEMBERS_MAX)]
    for host in (*hosts, hosts[0], "10.99.0.1"):
        members.record(host)

    assert hosts[0] in members
    assert "10.99.0.1" in members
    assert hosts[1] not in members
