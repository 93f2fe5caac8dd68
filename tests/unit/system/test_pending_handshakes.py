"""Which connections may start a handshake while others flood the port."""

from __future__ import annotations

from octaskly.system.pending_handshakes import (
    MEMBERS_MAX,
    HandshakeLimiter,
    MemberAddresses,
)

OWN = "10.0.0.1"
MEMBER = "10.0.0.2"
TOTAL = 8
PER_ADDRESS = 4
LOCAL = 3


class Port:
    """A limiter, and the connections that it closed."""

    def __init__(self, *members: str) -> None:
        self.closed: list[str] = []
        self.members = MemberAddresses()
        for host in members:
            self.members.record(host)
        self.limiter = HandshakeLimiter[str](
            total_max=TOTAL,
            per_address_max=PER_ADDRESS,
            local_max=LOCAL,
            members=self.members,
            close=self.closed.append,
        )

    def admit(self, connection: str, host: str) -> bool:
        return self.limiter.admit(connection, host, OWN)

    def flood(self, count: int) -> int:
        """Connect from so many strangers; return how many were admitted."""
        return sum(
            self.admit(f"s{n}", f"10.9.{n // 250}.{n % 250}") for n in range(count)
        )


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
    assert port.limiter.is_local("l0")
    assert not port.limiter.is_local("s0")
    assert len(port.limiter) == TOTAL + LOCAL


async def test_a_finished_handshake_leaves_its_place() -> None:
    """Also one that was evicted before, which counts no more."""
    port = Port()
    port.flood(TOTAL + 1)
    (evicted,) = port.closed

    for n in range(TOTAL + 1):
        port.limiter.release(f"s{n}")
    port.limiter.release(evicted)

    assert len(port.limiter) == 0
    assert port.flood(TOTAL // 2) == TOTAL // 2


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
