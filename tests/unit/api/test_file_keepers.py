"""Keepers of files: who may release a file."""

from __future__ import annotations

from octaskly.api.security.file_keepers import FILES_MAX, KEEPERS_MAX, FileKeepers
from octaskly.ports.tokens import Principal


def client(name: str) -> Principal:
    return Principal(subject=name, role="client")


ADMIN = Principal(subject="root", role="admin")


def test_file_is_released_with_its_last_keeper() -> None:
    """A repeated release, and one by a stranger, changes nothing."""
    keepers = FileKeepers()
    keepers.add("ana", ["f"], are_new=True)
    keepers.add("bob", ["f"])

    released = [keepers.release(client(who), "f") for who in ("eve", "bob", "bob")]

    assert released == [False, False, False]
    assert keepers.release(client("ana"), "f")


def test_file_that_was_here_before_is_released_by_an_admin_alone() -> None:
    """It may have come from another client before the agent restarted."""
    keepers = FileKeepers()
    assert not keepers.release(client("ana"), "f")
    keepers.add("ana", ["f"])
    assert not keepers.release(client("ana"), "f")

    assert keepers.release(ADMIN, "f")


def test_admin_that_is_a_keeper_releases_the_file_for_itself_alone() -> None:
    """The executor of a local user does so after each call."""
    keepers = FileKeepers()
    keepers.add("root", ["f"], are_new=True)
    keepers.add("ana", ["f"])

    assert not keepers.release(ADMIN, "f")
    assert keepers.release(client("ana"), "f")


def test_keepers_in_memory_are_bounded() -> None:
    """What is forgotten is released by admins alone."""
    keepers = FileKeepers()
    many = [f"who{n}" for n in range(KEEPERS_MAX + 2)]
    for who in many:
        keepers.add(who, ["f"], are_new=True)
    assert not any(keepers.release(client(who), "f") for who in many)

    keepers.add("ana", ["first"], are_new=True)
    keepers.add("ana", (f"{n}" for n in range(FILES_MAX)), are_new=True)
    assert not keepers.release(client("ana"), "first")
    assert keepers.release(client("ana"), "0")
