"""The systemd units are valid, and restrict tasks as documented."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from octaskly.config.defaults import API_PORT, LOOPBACK

UNITS = Path(__file__).parent.parent.parent / "systemd"
EXPOSURE_MAX = 25  #: tenths: 2.5, where 10 is no protection at all

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"
)


def analyze(
    *arguments: str, runtime: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": "/usr/bin:/bin", "HOME": "/root", "SYSTEMD_COLORS": "0"}
    if runtime:
        environ["XDG_RUNTIME_DIR"] = str(runtime)
    return subprocess.run(
        ["systemd-analyze", *arguments],
        capture_output=True,
        text=True,
        env=environ,
        timeout=60,
        check=False,
    )


def installed(tmp_path: Path, name: str) -> Path:
    """Return the unit as a file that names an existing program."""
    text = (UNITS / name).read_text()
    target = tmp_path / "octaskly.service"
    shutil.copy(UNITS / "octaskly.socket", tmp_path)
    target.write_text(
        re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE)
    )
    return target


def test_the_system_unit_is_valid(tmp_path: Path) -> None:
    """Systemd reports no problem."""
    unit = installed(tmp_path, "octaskly.service")

    done = analyze("--man=no", "verify", str(unit))

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_user_unit_is_valid(tmp_path: Path) -> None:
    """The same for the unit without root."""
    unit = installed(tmp_path, "octaskly-user.service")

    done = analyze("--man=no", "--user", "verify", str(unit), runtime=tmp_path)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["octaskly.service", "octaskly-user.service"])
def test_socket_unit_is_valid(tmp_path: Path, name: str) -> None:
    """And it is started, enabled and disabled with the service."""
    unit = installed(tmp_path, name)

    done = analyze("--man=no", "verify", str(tmp_path / "octaskly.socket"))

    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    lines = unit.read_text().splitlines()
    assert "Wants=octaskly.socket" in lines
    assert "Also=octaskly.socket" in lines


def test_socket_unit_listens_where_the_agent_would() -> None:
    """On the default port, on all that `localhost` means, and nowhere else."""
    text = (UNITS / "octaskly.socket").read_text()

    listens = re.findall("^Listen.*$", text, re.MULTILINE)

    assert listens == [
        f"ListenStream={address}:{API_PORT}"
        for address in (LOOPBACK[0], f"[{LOOPBACK[1]}]")
    ]


def test_the_system_unit_exposes_little(tmp_path: Path) -> None:
    """It runs foreign commands, so its sandbox is part of the product."""
    unit = installed(tmp_path, "octaskly.service")

    done = analyze(
        "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", str(unit)
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "drop_in", sorted((UNITS / "drop-ins").glob("*.conf")), ids=lambda path: path.stem
)
def test_each_drop_in_is_valid(tmp_path: Path, drop_in: Path) -> None:
    """Each works unchanged, beside the unit."""
    unit = installed(tmp_path, "octaskly.service")
    folder = tmp_path / "octaskly.service.d"
    folder.mkdir()
    shutil.copy(drop_in, folder)

    done = analyze("--man=no", "verify", str(unit))

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_no_drop_in_replaces_the_program_and_its_flags() -> None:
    """`service install` writes other ones than the unit in the repository has."""
    texts = [path.read_text() for path in (UNITS / "drop-ins").glob("*.conf")]

    assert not any("ExecStart" in text for text in texts)


@pytest.mark.parametrize("name", ["octaskly.service", "octaskly-user.service"])
def test_units_match_the_agent(name: str) -> None:
    """Readiness and watchdog come from the agent; exit 78 is not restarted."""
    lines = (UNITS / name).read_text().splitlines()

    for line in (
        "Type=notify",
        "WatchdogSec=30s",
        "TimeoutStopSec=60s",
        "KillMode=mixed",
        "RestartPreventExitStatus=78",
        "NoNewPrivileges=yes",
    ):
        assert line in lines


@pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None, reason="needs systemd-sysusers"
)
def test_users_of_the_unit_are_made_by_sysusers(tmp_path: Path) -> None:
    """The unit's users exist there."""
    (tmp_path / "etc").mkdir()
    done = subprocess.run(
        [
            "systemd-sysusers",
            f"--root={tmp_path}",
            "--dry-run",
            str(UNITS / "sysusers.d" / "octaskly.conf"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "Creating user 'octaskly'" in said
    assert "Creating user 'octaskly-task'" in said


def test_the_system_unit_runs_tasks_as_their_own_user() -> None:
    """The user exists, and the agent gets only the right to switch to it."""
    lines = (UNITS / "octaskly.service").read_text().splitlines()

    for line in (
        "Environment=OCTASKLY_TASK_USER=octaskly-task",
        "AmbientCapabilities=CAP_SETUID CAP_SETGID",
        "CapabilityBoundingSet=CAP_SETUID CAP_SETGID",
        "StateDirectoryMode=0711",
        "UMask=0077",
    ):
        assert line in lines
