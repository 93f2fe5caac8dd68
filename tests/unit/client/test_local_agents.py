"""Agents of other users, as the kernel lists their sockets."""

from __future__ import annotations

from pathlib import Path

from octaskly.client.local_agents import find_agents_of_others

HEAD = "Num       RefCount Protocol Flags    Type St Inode Path\n"


def test_a_forged_row_is_skipped(tmp_path: Path) -> None:
    """The kernel prints a path as it is, also one with a newline."""
    table = tmp_path / "unix"
    real = "0000000000000000: 00000002 00000000 00010000 0001 01 1 /x/octaskly/a"
    table.write_text(f"{HEAD}{real}\n1: 2 3 zz 5 6 7 8.sock\n1: 2 3 -1 5 6 7 8.sock\n")

    assert list(find_agents_of_others(table)) == []
