"""`octaskly service` on machines with and without systemd."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from octaskly.cli.output.render import JSON_VERSION
from octaskly.cli.service import unit_files
from octaskly.cli.service.systemd import Scope
from octaskly.trust import create_secret_file
from tests.cli import machine as machines
from tests.cli.machine import OCTASKLY, Machine, booted

pytestmark = [
    pytest.mark.netns,
    pytest.mark.timeout(400),
    pytest.mark.skipif(machines.missing() is not None, reason=str(machines.missing())),
]

FIRST_RESULT_S_MAX = 2.0
NO_AGENT = """\
error: no Octaskly agent is running on this machine
  hint: octaskly agent                try it now, in this terminal
  hint: octaskly service install      keep it running, also after a reboot
  hint: octaskly --state-dir DIR ...  use the agent that `agent --state-dir DIR` started
"""
LIMITS = re.compile(
    r"^  tasks run as: root      limits: \d+ tasks? at a time, [\d.]+ GiB "
    r"\(change: octaskly config\)$",
    re.MULTILINE,
)
NEXT = "next:  octaskly run -- hostname        octaskly open        octaskly invite\n"
UNIT = ".config/systemd/user/octaskly.service"


@pytest.fixture(scope="module")
def shared() -> Iterator[Machine]:
    """A machine for all tests of this module."""
    with booted() as machine:
        yield machine


@pytest.fixture
def machine(shared: Machine) -> Iterator[Machine]:
    """The machine with a secret only: no service, no data, no wait for a mesh."""
    create_secret_file(shared.home / ".config/octaskly/mesh.key")
    yield shared
    for unit in ("octaskly.socket", "octaskly.service"):
        shared.run("systemctl", "--user", "disable", "--now", unit)
    shared.run("sh", "-c", "rm -rf $HOME/.config $HOME/.local")
    shared.run("systemctl", "--user", "daemon-reload")
    # An interrupt before the start finds the previous state, and keeps it.
    shared.run("systemctl", "--user", "reset-failed")


def unit_of(machine: Machine) -> Path:
    """Return the unit's file, in a folder that both machines share."""
    return machine.home / UNIT


def pid_of(machine: Machine) -> int:
    """Return the process id of the service's agent."""
    shown = machine.octaskly("service", "status", "--json").stdout
    return int(json.loads(shown)["pid"])


def test_the_first_minutes_follow_the_design(machine: Machine) -> None:
    """The hint, the installation, and then a working service."""
    (machine.home / ".config/octaskly/mesh.key").unlink()

    alone = machine.octaskly("run", "--", "echo", "hello")
    installed = machine.octaskly("service", "install")
    ran = machine.octaskly("run", "--", "echo hello")

    assert (alone.returncode, alone.stderr) == (5, NO_AGENT)
    assert (installed.returncode, installed.stdout) == (0, "")
    said = installed.stderr
    assert (
        f"✓ user service octaskly.service written and started ({unit_of(machine)})\n"
        in said
    )
    assert "✓ linger is on" in said
    assert "is its dispatcher\n" in said
    assert "API http://localhost:3000 (this machine only)\n" in said
    assert LIMITS.search(said), said
    assert said.endswith(NEXT)
    assert (ran.returncode, ran.stdout) == (0, "hello\n")


@pytest.mark.soak
def test_first_result_comes_within_two_seconds_of_install(machine: Machine) -> None:
    """Without a secret at the start. It needs an idle machine."""
    (machine.home / ".config/octaskly/mesh.key").unlink()

    began = time.perf_counter()
    machine.octaskly("service", "install")
    ran = machine.octaskly("run", "--", "echo", "hello")
    took_s = time.perf_counter() - began

    assert ran.stdout == "hello\n"
    assert took_s <= FIRST_RESULT_S_MAX


def test_second_install_changes_nothing(machine: Machine) -> None:
    """Idempotent: the same agent goes on, with its flags."""
    machine.octaskly("service", "install", "--label", "disk=ssd")
    before = pid_of(machine)

    again = machine.octaskly("service", "install")

    assert again.returncode == 0, again.stderr
    assert "· as before: --label disk=ssd\n" in again.stderr
    assert "octaskly.service runs already" in again.stderr
    assert pid_of(machine) == before


def test_install_after_an_upgrade_restarts_the_agent(machine: Machine) -> None:
    """Also if the unit is the same: `doctor` says that this command does it."""
    machine.octaskly("service", "install", "--name", "ash")
    before = pid_of(machine)
    description = machine.home / ".local/state/octaskly/ash/agent.json"
    agent = json.loads(description.read_bytes())
    description.write_text(json.dumps(agent | {"build": "00000000"}))

    again = machine.octaskly("service", "install")

    assert again.returncode == 0, again.stderr
    assert "octaskly.service restarted with this program" in again.stderr
    assert pid_of(machine) != before


def test_new_flags_are_shown_and_restart_the_agent(machine: Machine) -> None:
    """The output shows the difference."""
    machine.octaskly("service", "install", "--name", "ash")

    changed = machine.octaskly("service", "install", "--name", "birch")

    assert changed.returncode == 0, changed.stderr
    assert f"-ExecStart={OCTASKLY[0]} agent --name ash\n" in changed.stderr
    assert f"+ExecStart={OCTASKLY[0]} agent --name birch\n" in changed.stderr
    assert "written and restarted" in changed.stderr
    assert "birch" in machine.octaskly("nodes").stdout


def test_dry_run_shows_and_changes_nothing(machine: Machine) -> None:
    """The unit goes to stdout as a difference, and to no file."""
    shown = machine.octaskly("service", "install", "--dry-run")

    assert shown.returncode == 0
    assert f"+ExecStart={OCTASKLY[0]} agent\n" in shown.stdout
    assert not unit_of(machine).exists()


def test_a_unit_that_was_edited_is_kept(machine: Machine) -> None:
    """The edit is shown, not lost; --force replaces it."""
    unit = unit_of(machine)
    unit.parent.mkdir(parents=True)
    plan = unit_files.make_unit_files(
        Scope.USER, {"HOME": str(machine.home)}, Path(OCTASKLY[0]), []
    )
    unit_files.write_unit_file(plan[0])
    unit.write_text(unit.read_text().replace("WatchdogSec=30s", "WatchdogSec=90s"))
    by_hand = unit.read_text()

    refused = machine.octaskly("service", "install")
    kept = unit.read_text()
    forced = machine.octaskly("service", "install", "--force")

    assert refused.returncode == 78
    assert "was changed by hand" in refused.stderr
    assert "-WatchdogSec=90s" in refused.stderr
    assert "hint: octaskly service install --force" in refused.stderr
    assert kept == by_hand
    assert forced.returncode == 0, forced.stderr
    assert "WatchdogSec=30s" in unit.read_text()


def test_a_unit_of_another_installation_is_kept(machine: Machine) -> None:
    """Two installations do not overwrite one service silently."""
    other = machine.home / "other" / "octaskly"
    other.parent.mkdir(exist_ok=True)
    other.symlink_to("/bin/true")
    unit = unit_of(machine)
    unit.parent.mkdir(parents=True)
    unit.write_text(
        unit_files.with_trailer(
            f"[Service]\nExecStart={other} agent --name old", ["--name", "old"]
        )
    )

    refused = machine.octaskly("service", "install")
    other.unlink()
    replaced = machine.octaskly("service", "install")

    assert refused.returncode == 78
    assert f"starts another installation: {other}" in refused.stderr
    # An installation that is gone has nothing to lose.
    assert replaced.returncode == 0, replaced.stderr
    assert "· as before: --name old" in replaced.stderr


def test_an_agent_that_does_not_start_shows_its_error(machine: Machine) -> None:
    """The last log lines of the agent are the cause."""
    key = machine.home / "bad.key"
    key.write_text("no secret\n")
    key.chmod(0o600)

    failed = machine.octaskly("service", "install", "--secret-file", str(key))

    assert failed.returncode == 1
    assert (
        "error: the service is installed, but its agent does not start" in failed.stderr
    )
    assert f"{key} is not a mesh secret" in failed.stderr
    assert "hint: octaskly service logs --user" in failed.stderr


def test_an_interrupted_install_leaves_nothing(machine: Machine) -> None:
    """Ctrl-C while it waits for the agent: no unit, no process, not enabled."""
    drop_in = unit_of(machine).with_suffix(".service.d") / "slow.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nExecStartPre=/bin/sleep 300\n")
    process = subprocess.Popen(
        machine.words(*OCTASKLY, "service", "install"), stderr=subprocess.DEVNULL
    )
    machines._until(unit_of(machine).exists, "the unit is written")
    # The command itself runs below nsenter, in another PID namespace.
    machine.run("pkill", "-INT", "-f", "service install")
    code = process.wait(60)
    shutil.rmtree(drop_in.parent)

    assert code == 130
    assert not unit_of(machine).exists()
    assert not unit_of(machine).with_suffix(".socket").exists()
    shown = machine.run(
        "systemctl", "--user", "show", "octaskly", "-p", "ActiveState,UnitFileState"
    )
    assert "ActiveState=inactive" in shown.stdout
    assert "enabled" not in shown.stdout


def test_uninstall_removes_the_unit_and_no_data(machine: Machine) -> None:
    """It prints the folder of the data."""
    machine.octaskly("service", "install", "--name", "ash")
    state = machine.home / ".local/state/octaskly/ash"
    secret = machine.home / ".config/octaskly/mesh.key"

    removed = machine.octaskly("service", "uninstall")

    assert removed.returncode == 0, removed.stderr
    assert not unit_of(machine).exists()
    assert not unit_of(machine).with_suffix(".socket").exists()
    assert f"data is kept: {state}\n" in removed.stderr
    assert f"data is kept: {secret}\n" in removed.stderr
    assert (state / "log.db").exists()
    assert secret.exists()
    assert machine.octaskly("service", "status").returncode == 1
    assert machine.octaskly("service", "uninstall").returncode == 78


def test_uninstall_works_with_invalid_settings(machine: Machine) -> None:
    """They may be why the service is to go; only a purge needs to know its folders."""
    machine.octaskly("service", "install", "--name", "ash")
    settings = machine.home / ".config/octaskly/config.toml"
    settings.write_text('slots = "many"\n')

    purged = machine.octaskly("service", "uninstall", "--purge", "--yes")
    is_still_there = unit_of(machine).exists()
    removed = machine.octaskly("service", "uninstall")

    assert (purged.returncode, is_still_there) == (78, True)
    assert removed.returncode == 0, removed.stderr
    assert "data is kept where its settings say, which are invalid: " in removed.stderr
    assert not unit_of(machine).exists()


def test_purge_asks_first(machine: Machine) -> None:
    """Without a terminal, it needs `--yes`; then nothing is left."""
    machine.octaskly("service", "install", "--name", "ash")
    state = machine.home / ".local/state/octaskly/ash"

    refused = machine.octaskly("service", "uninstall", "--purge")
    still = unit_of(machine).exists() and state.exists()
    purged = machine.octaskly("service", "uninstall", "--purge", "--yes")

    assert refused.returncode == 2
    assert "uninstall --purge --yes" in refused.stderr
    assert still
    assert purged.returncode == 0, purged.stderr
    assert not state.exists()
    assert not list((machine.home / ".config/octaskly").glob("mesh.key*"))


def test_purge_keeps_a_secret_that_another_agent_uses(machine: Machine) -> None:
    """That agent would found a mesh of its own at its next start."""
    machine.octaskly("service", "install", "--name", "ash")
    other = machine.home / ".local/state/octaskly/birch"
    shutil.copytree(other.with_name("ash"), other, ignore=lambda *_: ["work"])

    purged = machine.octaskly("service", "uninstall", "--purge", "--yes")

    assert purged.returncode == 0, purged.stderr
    assert not other.with_name("ash").exists()
    assert (machine.home / ".config/octaskly/mesh.key").exists()
    assert "another agent of this machine uses the secret" in purged.stderr


def test_purge_names_what_it_cannot_remove(machine: Machine) -> None:
    """The unit is gone by then, so the command cannot be repeated."""
    machine.octaskly("service", "install", "--name", "ash")
    state = machine.home / ".local/state/octaskly/ash"
    machine.run("mkdir", f"{state}/work/disk")
    machine.run("mount", "-t", "tmpfs", "disk", f"{state}/work/disk")

    purged = machine.octaskly("service", "uninstall", "--purge", "--yes")

    machine.run("umount", f"{state}/work/disk")
    assert purged.returncode == 1
    assert f"error: a part of {state} could not be removed" in purged.stderr
    assert f"&& rm -r {state}" in purged.stderr
    assert not (machine.home / ".config/octaskly/mesh.key").exists()


def test_purge_keeps_a_folder_from_a_flag(machine: Machine) -> None:
    """It may hold more than the agent's files, so only people may remove it."""
    state = machine.home / "documents"
    machine.octaskly("service", "install", "--state-dir", str(state))

    purged = machine.octaskly("service", "uninstall", "--purge", "--yes")

    assert purged.returncode == 0, purged.stderr
    assert f"data is kept: {state}\n" in purged.stderr
    assert (state / "log.db").exists()
    assert not (machine.home / ".config/octaskly/mesh.key").exists()


def test_logs_are_those_of_the_agent(machine: Machine) -> None:
    """They come from the journal, on stdout."""
    machine.octaskly("service", "install", "--name", "ash")

    shown = machine.octaskly("service", "logs", "--lines", "200")

    assert shown.returncode == 0
    assert 'event="agent ready" node=ash' in shown.stdout


def test_status_serves_people_and_programs(machine: Machine) -> None:
    """Exit code 0 means that it runs."""
    machine.octaskly("service", "install", "--slots", "3")

    shown = machine.octaskly("service", "status")
    read = json.loads(machine.octaskly("service", "status", "--json").stdout)

    assert shown.returncode == 0
    assert "changed by hand:  no\n" in shown.stdout
    assert "enabled:          yes\n" in shown.stdout
    assert "state:            active\n" in shown.stdout
    assert read["v"] == JSON_VERSION
    assert read["flags"] == ["--slots", "3"]
    assert read["enabled"] is True
    assert read["changed_by_hand"] is False


def test_refused_linger_prints_the_command(machine: Machine, tmp_path: Path) -> None:
    """The service works until logout; root can change that."""
    refuses = machine.home / "refuses"
    refuses.mkdir(exist_ok=True)
    (refuses / "loginctl").write_text(
        # As loginctl of systemd 257 where polkit refuses.
        "#!/bin/sh\necho 'Could not enable linger: Access denied' >&2\nexit 1\n"
    )
    (refuses / "loginctl").chmod(0o755)

    installed = machine.octaskly(
        "service", "install", PATH=f"{refuses}:{os.environ['PATH']}"
    )

    assert installed.returncode == 0, installed.stderr
    assert "! the service stops when you log out\n" in installed.stderr
    assert "hint: sudo loginctl enable-linger root\n" in installed.stderr


def test_a_user_without_a_manager_gets_a_hint(machine: Machine) -> None:
    """As after `su`: systemd runs, but no user manager."""
    refused = machine.octaskly("service", "install", XDG_RUNTIME_DIR="/run/nowhere")

    assert refused.returncode == 78
    assert "systemd runs no manager for this user here" in refused.stderr
    assert "sudo loginctl enable-linger root" in refused.stderr
    assert not unit_of(machine).exists()


def test_a_machine_without_systemd_gets_a_hint(tmp_path: Path) -> None:
    """In a container, for example."""
    words = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs none /run; exec "$@"',
        "sh",
    ]
    done = subprocess.run(
        [*words, *OCTASKLY, "service", "install"],
        env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 78
    assert "error: this machine does not run systemd\n" in done.stderr
    assert "hint: octaskly agent" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_join_starts_a_stopped_service(machine: Machine) -> None:
    """Join writes the secret file, and the service reads it."""
    state = machine.home / "member"
    machine.octaskly("service", "install", "--interface", "lo")
    machine.run("systemctl", "--user", "stop", "octaskly")
    secret = machine.home / "member.key"
    create_secret_file(secret)
    options = ["--interface", "lo", "--state-dir", str(state), "--name", "ash"]
    options += ["--secret-file", str(secret), "--api-port", "0", "--peer-port", "0"]
    started = machine.run(
        *("systemd-run", "--user", "--unit=ash", "--property=Type=notify"),
        *(*OCTASKLY, "agent", *options, "--lan-port", "0"),
    )
    assert started.returncode == 0, started.stderr
    invited = machine.octaskly("--state-dir", str(state), "invite", "--json")
    opened = json.loads(invited.stdout)

    joined = machine.octaskly("join", "--at", opened["places"][0], opened["code"])

    machine.run("systemctl", "--user", "stop", "ash")
    assert joined.returncode == 0, joined.stderr
    assert "✓ service started; joined the mesh of ash" in joined.stderr
    assert (machine.home / ".config/octaskly/mesh.key").read_text() == (
        secret.read_text()
    )
    assert pid_of(machine) > 0
