"""Listeners and connections as the kernel's tables show them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from octaskly.system.tcp_table import Listener, listeners_on

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt"
ROW = "   0: {}:{} {}:{} {} 00000000:00000000 00:00000000 00000000  {}  0 {} 1 0"
ANY, LOOPBACK = "00000000", "0100007F"
ANY_6, LOOPBACK_6 = "0" * 32, "0" * 24 + "01000000"
MAPPED_6 = "0" * 16 + "FFFF0000" + LOOPBACK
LISTENING, ESTABLISHED = "0A", "01"

pytestmark = pytest.mark.skipif(
    sys.byteorder == "big", reason="the tables have the byte order of the machine"
)


def listening(address: str, uid: int, inode: int, port: str = "0BB8") -> str:
    nobody = "0" * len(address)
    return ROW.format(address, port, nobody, "0000", LISTENING, uid, inode)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    """Tables with four listeners on port 3000 and rows that are no such thing."""
    four, six = tmp_path / "tcp", tmp_path / "tcp6"
    connected = ROW.format(LOOPBACK, "0BB8", LOOPBACK, "9C40", ESTABLISHED, 1003, 9)
    dialled = ROW.format(LOOPBACK, "9C40", LOOPBACK, "0BB8", ESTABLISHED, 1004, 8)
    rows = [listening(LOOPBACK, 1000, 1), listening(ANY, 1001, 2), connected, dialled]
    rows.append(listening(LOOPBACK, 1005, 7, port="0BB9"))
    four.write_text("\n".join([HEAD, *rows, ""]))
    rows = [listening(LOOPBACK_6, 1000, 3), listening(ANY_6, 0, 4)]
    rows.append(listening(MAPPED_6, 1002, 5))
    six.write_text("\n".join([HEAD, *rows, ""]))
    return four, six


def test_listeners_of_a_port_are_shown_with_their_users(
    tables: tuple[Path, Path],
) -> None:
    """Connections from and to that port, and other ports, are left out."""
    assert listeners_on(3000, tables) == {
        Listener("127.0.0.1", 1000, 1),
        Listener("0.0.0.0", 1001, 2),
        Listener("::1", 1000, 3),
        Listener("::", 0, 4),
        Listener("::ffff:127.0.0.1", 1002, 5),
    }


def test_a_listener_accepts_what_the_kernel_would_give_it(
    tables: tuple[Path, Path],
) -> None:
    """An IPv6 listener on all addresses may get IPv4, too."""
    found = listeners_on(3000, tables)

    assert {each.inode for each in found if each.accepts("127.0.0.1")} == {1, 2, 4, 5}
    assert {each.inode for each in found if each.accepts("127.0.0.2")} == {2, 4}
    assert {each.inode for each in found if each.accepts("::1")} == {3, 4}


def test_tables_that_are_not_there_have_no_listeners(tmp_path: Path) -> None:
    """So that who asks trusts nobody."""
    assert listeners_on(3000, [tmp_path / "tcp"]) == frozenset()
