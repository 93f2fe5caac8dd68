"""The README's and the tutorial's commands for two machines, typed at two machines."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks_of
from tests.docs.console import Console, console
from tests.docs.test_pages_run import TWO_MACHINES
from tests.mesh.conftest import MakeLab
from tests.mesh.lab import Host

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

NAMES = ("desk", "pi4")


@pytest.mark.parametrize("page", TWO_MACHINES)
def test_commands_of_a_page_work_on_two_machines(make_lab: MakeLab, page: str) -> None:
    """With the page's names, ports and way to join, and with no prior setup."""
    hosts = dict(zip(NAMES, make_lab(2).hosts, strict=True))
    invites: list[str] = []
    ran = dict.fromkeys(NAMES, 0)
    with contextlib.ExitStack() as stack:
        machines: dict[str, Console] = {}
        for name, host in hosts.items():
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="octaskly-"))
            place = machine(host, name)
            machines[name] = stack.enter_context(
                console(Path(home), place=place, invites=invites)
            )
        # Only the names of a LAN that need mDNS, which a lab lacks, are written down.
        known = "".join(
            f'resolve = "{name}.local:3443:{host.ip}"\n' for name, host in hosts.items()
        )
        (machines["desk"].home / ".curlrc").write_text(known)
        for block in blocks_of((ROOT / page).read_text()):
            name = block.host or "desk"
            ran[name] += machines[name].do(block)

    assert ran["desk"] >= 5
    assert ran["pi4"] == 2


def machine(host: Host, name: str) -> list[str]:
    """Return the command prefix that runs a command on a host of this name."""
    renamed = 'hostname "$0" && exec "$@"'
    return [*host.prefix, "unshare", "--uts", "sh", "-c", renamed, name]
