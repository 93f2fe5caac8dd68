"""`--here` on hosts with separate disks, and a folder that some of them share."""

import sys
from pathlib import Path

import pytest

from octaskly.client.here_file import PREFIX
from tests.mesh.conftest import MakeLab
from tests.mesh.forming import FORM_S, is_formed, secret_file
from tests.mesh.lab import Host, Lab, with_mounts
from tests.mesh.netns import wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]


class SharedFolders:
    """A file server, and two paths where machines may have its folder.

    Two of three hosts have it as `project`. None has it as `homes/mine`, where the user
    who runs the commands has it, each for another reason.
    """

    def __init__(self, lab: Lab) -> None:
        self.server = lab.folder / "server"
        self.project = lab.folder / "project"
        self.homes = lab.folder / "homes"
        self.mine = self.homes / "mine"
        hidden = lab.folder / "systemd" / "inaccessible" / "dir"
        for folder in (self.server, self.project, self.mine, hidden):
            folder.mkdir(parents=True)
        shared = f"mount --bind {self.server} {self.project}"
        self.of_user = f"{shared}; mount --bind {self.server} {self.mine}"
        self._of_hosts = (
            shared,
            f"{shared}; mount -t tmpfs lab {self.homes}",
            f"mount --bind {hidden} {self.homes}",
        )
        secret = secret_file(lab.folder)
        for host, mounts in zip(lab.hosts, self._of_hosts, strict=True):
            host.agent(
                *("", "--slots", "2"), secret=secret, mounts=mounts, is_awaited=False
            )
        wait_until("one mesh", lambda: is_formed(lab.hosts), within_s=FORM_S)

    def run(self, host: Host, folder: Path, *words: str) -> tuple[int, str, list[str]]:
        """Run a command as a user in a folder; return exit code, stdout and stderr."""
        command = (sys.executable, "-m", "octaskly", "--state-dir")
        done = host.run(
            *with_mounts(f"{self.of_user}; cd {folder}"),
            *(*command, str(host.first.state), *words),
            env=host.environ(host.name) | {"PYTHONPATH": str(Path.cwd())},
        )
        lines = done.stderr.splitlines()
        return (
            done.returncode,
            done.stdout,
            [line for line in lines if not line.startswith("queued: ")],
        )


def test_tasks_run_where_the_folder_of_the_user_is(make_lab: MakeLab) -> None:
    """A node that has another folder there, or none, hands its tasks back."""
    lab = make_lab(3)
    folders = SharedFolders(lab)
    command = "sleep 0.2; echo $OCTASKLY_NODE >{}"

    code, _, said = folders.run(
        *(lab.hosts[0], folders.project, "map", "--here", command, ":::"),
        *map(str, range(12)),
    )

    assert (code, said) == (0, [])
    made = {path.name: path.read_text().strip() for path in folders.server.iterdir()}
    assert sorted(made, key=int) == list(map(str, range(12)))
    assert set(made.values()) == {"h1", "h2"}

    code, _, said = folders.run(
        lab.hosts[0], folders.mine, "run", "--here", "--", "touch ran"
    )

    mine = folders.mine
    assert code == 125
    assert said[0].endswith(
        "failed: no worker has its inputs or its folder, or enough disk space"
    )
    gone = "has no longer the file by which it is recognised"
    opens = f"ProtectHome=no and ReadWritePaths={mine}, set by `sudo systemctl edit"
    hides = f"the systemd unit of h3 hides {folders.homes}; {opens} octaskly` there"
    start = "  cause: no node has all its inputs: the folder "
    texts = said[1].removeprefix(start).split("; the folder ")
    assert sorted(texts) == [
        f"{mine} (it does not exist on h2)",
        f"{mine} (the one on h1 is another folder, or {gone})",
        f"{mine} ({hides}, open it)",
    ]
    left = {path.name for path in folders.server.iterdir()}
    assert not [name for name in left if name == "ran" or name.startswith(PREFIX)]
