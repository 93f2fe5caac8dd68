"""How-to pages whose files travel, typed at one of two hosts with separate disks."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from octaskly.trust import create_secret_file
from tests.docs.blocks import ROOT, blocks_of
from tests.docs.conftest import quick
from tests.docs.console import Console, console
from tests.docs.test_pages_run import TRAVELLING
from tests.mesh.lab import Host, Lab
from tests.mesh.netns import wait_until
from tests.mesh.test_tutorial import machine

__all__ = ["quick"]

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

MEET_S = 60.0


@pytest.fixture(scope="module")
def hosts(_may_make_labs: None, quick: Path) -> Iterator[tuple[Console, Console]]:
    """Return the machine of the reader, and another one of its mesh."""
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab(2, has_own_disks=True))
        desk, pi4 = (
            stack.enter_context(
                console(home_of(host), is_strict=False, place=machine(host, name))
            )
            for name, host in zip(("desk", "pi4"), lab.hosts, strict=True)
        )
        create_secret_file(desk.secret)
        pi4.secret.parent.mkdir(parents=True)
        shutil.copy(desk.secret, pi4.secret)
        desk.environ["PATH"] = f"{quick}:{desk.environ['PATH']}"
        desk.environ["PROJECTS"] = str(ROOT / "tests/support")
        for each in (desk, pi4):
            # Those of this project take a second to load.
            each.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            each.start("octaskly agent --slots 4", [])
        wait_until("a mesh", lambda: _has_two_nodes(desk), within_s=MEET_S)
        yield desk, pi4


def home_of(host: Host) -> Path:
    home = host.folder / "home"
    home.mkdir()
    return home


def _has_two_nodes(desk: Console) -> bool:
    listed = json.loads("".join(desk.ask("octaskly nodes --json")))
    return [node["state"] for node in listed["nodes"]] == ["ready", "ready"]


@pytest.mark.parametrize("page", TRAVELLING)
def test_work_of_a_page_travels(hosts: tuple[Console, Console], page: str) -> None:
    """Its commands work, its checks hold, and the other host did some of it."""
    lacking = [tool for tool in TRAVELLING[page] if shutil.which(tool) is None]
    if lacking:
        pytest.skip(f"not installed: {lacking}")
    desk, _ = hosts
    folder = f"~/{Path(page).stem}"
    desk.begin(f"mkdir {folder} && cd {folder}")
    earlier = arrays_of(desk)

    for block in blocks_of((ROOT / page).read_text()):
        desk.do(block)

    arrays = arrays_of(desk) - earlier
    assert "pi4" in {worker for array in arrays for worker in workers_of(desk, array)}


def arrays_of(desk: Console) -> set[str]:
    tasks = json.loads("".join(desk.ask("octaskly ls --json --limit 1000")))["tasks"]
    return {task["id"] for task in tasks if task["array"] is not None}


def workers_of(desk: Console, array: str) -> set[str]:
    """Return the nodes that ran members of an array."""
    members = json.loads("".join(desk.ask(f"octaskly ls --json --array {array}")))
    return {member["worker_id"] for member in members["tasks"]}
