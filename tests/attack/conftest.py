"""Attacks: what a local user, a task or a weak token tries against a mesh.

Each test acts as the attacker that it names: another user of the machine (a real
process under another uid), a task, a viewer, a stranger on the LAN. It asserts what the
attacker did not get, and what the victim was told. `docs/explanation/security.md` lists
the attacks with the tests.

The tests need root, because only root can become another user and make a network of its
own. Elsewhere they are skipped, but never where `CI` is set: there they fail.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.mesh.netns import isolate, set_namespace

OWN_NETWORK = Path("/proc/thread-self/ns/net")


def leave_out(reason: str) -> NoReturn:
    """Skip a test that cannot run here; fail where `CI` is set."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    if os.geteuid() != 0:
        leave_out("attacks need root, to act as other users")


@pytest.fixture
def network(_needs_root: None) -> Iterator[None]:
    """A loopback of its own for this test."""
    with own_network():
        yield


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Give a block a loopback of its own: its ports are those of a real machine."""
    with OWN_NETWORK.open() as before:
        isolate()
        try:
            yield
        finally:
            set_namespace(before.fileno())
