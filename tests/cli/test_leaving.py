"""`octaskly leave` by root, for an agent of another user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOBODY = 65534
PROGRAM = """
import os, sys
from pathlib import Path
from octaskly.cli.commands.leave import drop_root_to_owner
drop_root_to_owner(Path(sys.argv[1]))
print(*os.getresuid(), *os.getresgid(), *os.getgroups())
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of others need root")


@pytest.mark.parametrize(
    ("owner", "rights"), [(NOBODY, [str(NOBODY)] * 6), (0, ["0"] * 6)]
)
def test_root_deletes_files_of_an_agent_with_the_agent_s_rights(
    tmp_path: Path, owner: int, rights: list[str]
) -> None:
    """An agent could name any file and any process of the machine."""
    socket = tmp_path / "ash.sock"
    socket.touch()
    os.chown(socket, owner, -1)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, socket], capture_output=True, check=True
    )

    assert done.stdout.decode().split()[:6] == rights
