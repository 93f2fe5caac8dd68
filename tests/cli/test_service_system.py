"""`octaskly service --system` on a machine with systemd."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli import machine as machines
from tests.cli.machine import ROOT, Machine, booted
from tests.support import port_thief
from tests.support.agents import until
from tests.support.port_thief import BOUND, THIEF_UID, TRIED

PYTHON = Path(f"/usr/bin/python3.{sys.version_info.minor}")  #: that only root can write
OPT = "/opt/octaskly"
PROGRAM = f"{OPT}/bin/octaskly"
SCRIPT = f"""#!{OPT}/bin/python
import sys
from octaskly.cli import main
sys.exit(main())
"""
#: $1: the interpreter. $2: the modules, and the program. $3: where modules belong.
#: They are compiled, as by pip: the user of the service cannot write there.
INSTALL = f"""
umask 022
"$1" -m venv --without-pip {OPT}
cp -r --preserve=timestamps "$2/." "$3/"
{OPT}/bin/python -m compileall -q "$3/octaskly"
mv "$3/octaskly-script" {PROGRAM}
chmod 755 {PROGRAM}
chmod -R go-w {OPT}
systemctl start systemd-journald.service
"""
#: The unit's filter of system calls is the second limit of the task user.
CONFINED = """
grep -h -e ^Seccomp: /proc/self/status
grep -h -e ^NoNewPrivs: /proc/self/status
unshare --user true 2>/dev/null || echo refused
"""
UNIT = "/etc/systemd/system/octaskly.service"
DEBIAN = ROOT / "packages" / "debian"
SOCKET = "/etc/systemd/system/octaskly.socket"


def reason() -> str | None:
    """Return the reason why this cannot be tried here."""
    if not PYTHON.exists():
        return f"{PYTHON} is missing, and others lie in homes"
    return machines.missing()


pytestmark = [
    pytest.mark.netns,
    pytest.mark.timeout(400),
    pytest.mark.skipif(reason() is not None, reason=str(reason())),
]


def needed(name: str) -> set[str]:
    """Return a distribution with all its dependencies."""
    found, ahead = set(), [name]
    while ahead:
        name = ahead.pop()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            if "extra ==" in line or "python_version <" in line.replace('"', ""):
                continue
            match = re.match(r"[A-Za-z0-9._-]+", line)
            assert match is not None
            ahead.append(match[0])
    return found


def copy_modules(target: Path) -> None:
    """Copy Octaskly's modules as root's installer would."""
    for name in needed("octaskly") - {"octaskly"}:
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # Not for this version of Python.
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            source = Path(str(files[0].locate())).parents[len(files[0].parts) - 1] / top
            if source.is_dir():
                shutil.copytree(source, target / top, dirs_exist_ok=True)
            elif source.exists():
                shutil.copy(source, target / top)
    shutil.copytree(ROOT / "octaskly", target / "octaskly")
    shutil.copytree(ROOT / "systemd", target / "octaskly" / "systemd")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine on which root has installed Octaskly for all."""
    with (
        booted(has_manager=False) as machine,
        tempfile.TemporaryDirectory(prefix="okw-") as folder,
    ):
        copy_modules(Path(folder))
        site = f"{OPT}/lib/{PYTHON.name}/site-packages"
        Path(folder, "octaskly-script").write_text(SCRIPT)
        done = machine.run("sh", "-ec", INSTALL, "sh", str(PYTHON), folder, site)
        assert done.returncode == 0, done.stderr
        yield machine


def test_a_system_service_runs_as_its_own_user(machine: Machine) -> None:
    """One command makes the user, the folders and the unit; the agent serves."""
    installed = machine.run(PROGRAM, "service", "install", "--system", "--slots", "2")
    ran = machine.run(PROGRAM, "run", "--", "id -un")
    bound = machine.run(PROGRAM, "run", "--", CONFINED)
    shown = machine.run(PROGRAM, "service", "status")
    user = machine.run("systemctl", "show", "octaskly", "--property=User", "--value")
    removed = machine.run(PROGRAM, "service", "uninstall", "--system")

    assert installed.returncode == 0, installed.stderr
    assert f"✓ system service octaskly.service written and started ({UNIT})\n" in (
        installed.stderr
    )
    assert "  tasks run as: octaskly-task " in installed.stderr
    assert (ran.returncode, ran.stdout) == (0, "octaskly-task\n"), ran.stderr
    assert bound.stdout.split() == ["Seccomp:", "2", "NoNewPrivs:", "1", "refused"]
    assert "scope:            system\n" in shown.stdout
    assert user.stdout == "octaskly\n"
    assert removed.returncode == 0, removed.stderr
    assert "data is kept: /var/lib/octaskly\n" in removed.stderr
    assert machine.read(UNIT) is None
    assert machine.read(SOCKET) is None
    assert machine.read("/etc/sysusers.d/octaskly.conf") is None


def test_nobody_takes_the_port_of_a_service_that_restarts_or_dies(
    machine: Machine, tmp_path: Path
) -> None:
    """Attack S1 where systemd holds the port, until the service is removed."""
    with installed(machine), trying(machine, tmp_path / "heard") as heard:
        before = main_pid(machine)
        machine.run("systemctl", "restart", "octaskly")
        restarted = main_pid(machine)
        machine.run("systemctl", "kill", "--signal=KILL", "octaskly")
        until(lambda: main_pid(machine) not in ("0", restarted), "it runs again")
        answer = machine.run("curl", "-s", "http://localhost:3000/health").stdout
        first = heard()

        machine.run(PROGRAM, "service", "uninstall", "--system")
        until(lambda: BOUND in heard(), "the port is free")

    assert before != restarted
    assert '"status":"healthy"' in answer
    assert BOUND not in first


def test_port_of_a_service_is_set_in_its_socket_unit(machine: Machine) -> None:
    """There alone; a setting that says otherwise ends the agent with exit code 78."""
    with installed(machine, "--api-port", "3100"):
        unit, socket = machine.read(UNIT) or "", machine.read(SOCKET) or ""
        first = machine.run("curl", "-s", "http://localhost:3100/health").stdout
        again = machine.run(PROGRAM, "service", "install", "--system", "--slots", "2")
        second = machine.run("curl", "-s", "http://localhost:3000/health").stdout
        machine.run("sh", "-c", "echo api_port = 3200 > /etc/octaskly/config.toml")
        machine.run("systemctl", "restart", "octaskly")
        why = machine.run("journalctl", "--unit", "octaskly", "--output=cat").stdout
        moved = machine.run(PROGRAM, "service", "install", "--system")
        third = machine.run("curl", "-s", "http://localhost:3200/health").stdout
        machine.run("rm", "/etc/octaskly/config.toml")

    assert "ExecStart=/opt/octaskly/bin/octaskly agent\n" in unit
    assert "ListenStream=127.0.0.1:3100\nListenStream=[::1]:3100\n" in socket
    assert again.returncode == 0, again.stderr
    assert "+ListenStream=127.0.0.1:3000\n" in again.stderr
    assert "systemd holds port 3000 for this agent, but --api-port is 3200" in why
    assert moved.returncode == 0, moved.stderr
    assert all('"status":"healthy"' in each for each in (first, second, third))


def test_package_scripts_handle_the_socket_as_the_service(machine: Machine) -> None:
    """An upgrade from a version without a socket enables it; a removal ends both."""
    with installed(machine):
        machine.run("systemctl", "disable", "--now", "octaskly.socket")
        machine.run("systemctl", "start", "octaskly.service")
        old = main_pid(machine)
        upgraded = machine.run("sh", str(DEBIAN / "postinst"), "configure", "0.9")
        enabled = machine.run("systemctl", "is-enabled", "octaskly.socket")
        listening = machine.run("systemctl", "is-active", "octaskly.socket")
        new = main_pid(machine)
        machine.run("sh", str(DEBIAN / "prerm"), "remove")
        units = ("octaskly.socket", "octaskly.service")
        left = [machine.run("systemctl", "is-active", unit).stdout for unit in units]
        then = [machine.run("systemctl", "is-enabled", unit).stdout for unit in units]

    assert upgraded.returncode == 0, upgraded.stderr
    assert (enabled.stdout, listening.stdout) == ("enabled\n", "active\n")
    assert old != new
    assert left == ["inactive\n"] * 2
    assert then == ["disabled\n"] * 2


def test_an_upgrade_goes_on_although_the_agent_does_not_start(
    machine: Machine,
) -> None:
    """A package that fails here stays half-configured, and stops all later ones."""
    settings = "/etc/octaskly/config.toml"
    with installed(machine):
        machine.run("sh", "-c", f"echo 'slots = 0' > {settings}")
        upgraded = machine.run("sh", str(DEBIAN / "postinst"), "configure", "0.9")
        machine.run("rm", settings)

    assert upgraded.returncode == 0, upgraded.stderr
    assert "octaskly: the agent did not start again" in upgraded.stderr


def test_service_of_a_package_is_shown_and_left_to_it(machine: Machine) -> None:
    """Its units lie where `service install` writes none."""
    units = "/run/systemd/system"
    for name in ("octaskly.service", "octaskly.socket"):
        machine.run("cp", str(ROOT / "systemd" / name), f"{units}/{name}")
    machine.run("systemctl", "daemon-reload")

    shown = machine.run(PROGRAM, "service", "status", "--json")
    removed = machine.run(PROGRAM, "service", "uninstall", "--system")

    machine.run("sh", "-c", f"rm {units}/octaskly.*; systemctl daemon-reload")
    status = json.loads(shown.stdout)
    assert shown.returncode == 1
    assert status["scope"] == "system"
    assert status["state"] != "not installed"
    assert status["unit"] == f"{units}/octaskly.service"
    assert status["changed_by_hand"] is False
    assert removed.returncode == 78
    assert "belongs to a package" in removed.stderr
    assert "sudo apt remove octaskly" in removed.stderr


def test_tasks_may_make_namespaces_with_the_drop_in(machine: Machine) -> None:
    """Also a /proc of their own, without which bubblewrap and containers do not run."""
    folder = f"{UNIT}.d"
    drop_in = ROOT / "systemd" / "drop-ins" / "bwrap.conf"
    with installed(machine):
        machine.run("sh", "-c", f"mkdir {folder}; cp {drop_in} {folder}")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "octaskly")
        ran = machine.run(
            PROGRAM, "run", "--", "unshare --user --map-root-user --mount-proc -pf true"
        )
        machine.run("rm", "-r", folder)

    assert ran.returncode == 0, ran.stderr


def test_service_has_no_port_that_changes(machine: Machine) -> None:
    """Nobody could hold it between two starts."""
    refused = machine.run(PROGRAM, "service", "install", "--system", "--api-port", "0")

    assert refused.returncode == 78
    assert "a service has a fixed API port" in refused.stderr
    assert machine.read(SOCKET) is None


@contextmanager
def installed(machine: Machine, *flags: str) -> Iterator[None]:
    """Have the service for the length of a block."""
    done = machine.run(PROGRAM, "service", "install", "--system", *flags)
    try:
        assert done.returncode == 0, done.stderr
        yield
    finally:
        machine.run(PROGRAM, "service", "uninstall", "--system")


def main_pid(machine: Machine) -> str:
    """Return the process id of the service, "0" while it does not run."""
    words = ("systemctl", "show", "octaskly", "--property=MainPID", "--value")
    return machine.run(*words).stdout.strip()


@contextmanager
def trying(machine: Machine, heard: Path) -> Iterator[Callable[[], bytes]]:
    """Let another user of the machine try to take the port, on and on."""
    words = (sys.executable, port_thief.__file__, str(THIEF_UID), "3000")
    with (
        heard.open("wb") as file,
        subprocess.Popen(
            machine.words(*words, "127.0.0.1", "::1"), stdout=file
        ) as process,
    ):
        try:
            until(lambda: TRIED in heard.read_bytes(), "somebody tries to take it")
            yield heard.read_bytes
        finally:
            # nsenter has a child, which ends with the machine otherwise.
            machine.run("pkill", "--uid", str(THIEF_UID))
            process.wait()


def test_a_program_that_a_user_can_change_is_refused(machine: Machine) -> None:
    """One module of one user is enough to take the machine; a hint shows the fix."""
    module = f"{OPT}/lib/{PYTHON.name}/site-packages/click/core.py"
    machine.run("chown", "1234", module)

    refused = machine.run(PROGRAM, "service", "install", "--system")

    machine.run("chown", "0", module)
    assert refused.returncode == 78
    assert f"cause: {module} belongs to user 1234\n" in refused.stderr
    assert "hint: sudo pipx install --global octaskly" in refused.stderr
    assert "uv tool install --python /usr/bin/python3 octaskly" in refused.stderr
    assert machine.read(UNIT) is None


def test_only_root_may_install_a_system_service(machine: Machine) -> None:
    """Others get the command with sudo, and the way without."""
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")

    refused = machine.run(*nobody, PROGRAM, "service", "install", "--system")

    assert refused.returncode == 4
    assert "error: only root may install a service of the machine\n" in refused.stderr
    assert f"hint: sudo {PROGRAM} service install --system\n" in refused.stderr
    assert "hint: octaskly service install " in refused.stderr
