"""Packages: a wheel, an sdist and a .deb install, run and uninstall."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from octaskly.cli.command_names import COMMANDS
from tests.docs.commands_page import commands, flags
from tests.support.agents import until

ROOT = Path(__file__).parent.parent.parent
DEBIAN = ROOT / "packages" / "debian"
BUILD_S = 900
LOWEST = "uv tool install --resolution lowest-direct"  #: of what pyproject.toml allows


@cache
def shared() -> dict[str, str]:
    """Return the content of the wheel's `share`, as its hook makes it."""
    place = ROOT / "packages" / "share.py"
    spec = importlib.util.spec_from_file_location("octaskly_share", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.shared_files())


def test_each_command_has_a_man_page_with_its_flags() -> None:
    """`man octaskly-run` matches `octaskly run --help`."""
    missing = {}
    for words, command in commands():
        page = shared()[f"share/man/man1/octaskly-{words.replace(' ', '-')}.1"]
        plain = page.replace("\\-", "-").replace("\\&", "")
        lacks = {flag for flag in flags(command) if flag not in plain}
        if lacks or "Example" not in (command.epilog or ""):
            missing[words] = lacks
    front = shared()["share/man/man1/octaskly.1"]

    assert missing == {}
    assert all(f"octaskly\\-{name}(1)" in front for name in COMMANDS)


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_man_pages_have_no_warnings() -> None:
    """Text that looks like a roff request would be lost."""
    pages = [text for path, text in shared().items() if "/man1/" in path]
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z"],
        input="".join(pages),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm", "build"])
def test_scripts_of_the_deb_are_valid_shell(name: str) -> None:
    """They run as root and unattended."""
    script = DEBIAN / name
    shell = "bash" if name == "build" else "sh"

    assert os.access(script, os.X_OK)
    subprocess.run([shell, "-n", str(script)], check=True)


def test_the_deb_installs_the_program_at_the_unit_s_path() -> None:
    """It also fills in each open field of its control file."""
    build = (DEBIAN / "build").read_text()
    unit = (ROOT / "systemd" / "octaskly.service").read_text()
    fields = set(re.findall("@[A-Z]+@", (DEBIAN / "control").read_text()))

    assert "opt=$root/opt/octaskly\n" in build
    assert '"$units"/octaskly.{service,socket} -t ' in build
    assert "\nExecStart=/opt/octaskly/bin/octaskly agent\n" in unit
    assert fields == set(re.findall("@[A-Z]+@", build))


# What follows builds for minutes and asks PyPI, so it is for `make soak`.


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of `make package` in a fresh clone."""
    folder = tmp_path_factory.mktemp("package")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder / "clone")], check=True)
    made = folder / "dist"
    made.mkdir()
    run = [sys.executable, "-m", "build", "--outdir", str(made), str(folder / "clone")]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = made.glob("*.whl")
    if shutil.which("dpkg-deb") and Path("/usr/bin/python3").exists():
        subprocess.run(
            [str(folder / "clone/packages/debian/build"), str(wheel), str(made)],
            env=os.environ | {"PIP": str(Path(sys.executable).parent / "pip")},
            check=True,
        )
    return made


@pytest.mark.soak
@pytest.mark.timeout(BUILD_S)
@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
@pytest.mark.parametrize("words", ["uv tool install", LOWEST, "pipx install"])
def test_an_installed_package_runs_a_task(
    dist: Path, tmp_path: Path, words: str, pattern: str
) -> None:
    """In a fresh environment, with the usual tools and with its man pages."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    tool, *rest = words.split()
    subprocess.run([venv / "bin" / "pip", "install", "-q", tool], check=True)
    places = {
        "UV_TOOL_DIR": tmp_path / "tools",
        "UV_TOOL_BIN_DIR": tmp_path / "bin",
        "PIPX_HOME": tmp_path / "tools",
        "PIPX_BIN_DIR": tmp_path / "bin",
    }
    (package,) = dist.glob(pattern)
    subprocess.run(
        [venv / "bin" / tool, *rest, "-q", "--python", sys.executable, package],
        env=os.environ | {name: str(path) for name, path in places.items()},
        check=True,
    )

    assert ran_a_task(tmp_path / "bin" / "octaskly", tmp_path)
    assert list(tmp_path.glob("tools/**/share/man/man1/octaskly-run.1"))
    assert list(tmp_path.glob("tools/**/octaskly/systemd/octaskly.service"))
    assert list(tmp_path.glob("tools/**/octaskly/static/vendor/preact.js"))


def ran_a_task(program: Path, folder: Path) -> bool:
    """Start an agent of this program, and let it run a task."""
    secret = subprocess.run([program, "secret", "new"], capture_output=True, check=True)
    key, state = folder / "mesh.key", folder / "state"
    key.touch(0o600)
    key.write_bytes(secret.stdout)
    options = f"--name ash --interface lo --state-dir {state} --secret-file {key}"
    ports = "--api-port 0 --peer-port 0 --lan-port 0"
    with subprocess.Popen(
        [program, "agent", *options.split(), *ports.split()], stderr=subprocess.DEVNULL
    ) as agent:
        hello: list[str | Path] = [program, "--state-dir", state, "run", "echo hi"]
        try:
            until(lambda: ran(hello) == b"hi\n", "a task ran", deadline_s=60)
        finally:
            agent.terminate()
    return True


def ran(command: list[str | Path]) -> bytes:
    return subprocess.run(command, capture_output=True, check=False).stdout


IN_ROOT = r"""
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
files() {
    find /etc /opt /usr /var -xdev \( -path /var/log -o -path /var/cache/man \
        -o -path '/var/lib/dpkg/*-old' -o -path '/etc/*-' -o -path /etc/.pwd.lock \
        -o -path /var/lib/systemd \) -prune -o -print | sort
}
files >/root/before
dpkg -i /root/octaskly.deb
id octaskly
test -f /usr/share/man/man1/octaskly-run.1.gz
test -f /usr/lib/systemd/system/octaskly.service
test -f /usr/lib/systemd/system/octaskly.socket
test -n "$(find /opt/octaskly -path */static/vendor/preact.js)"
command -v octaskly
state=/var/lib/octaskly
install -d -m 700 -o octaskly -g octaskly $state
setpriv --reuid octaskly --regid octaskly --clear-groups env HOME=$state \
    octaskly agent --name deb --interface lo --state-dir $state --slots 2 \
    --secret-file $state/mesh.key >/root/agent.log 2>&1 &
agent=$!
told=
for _ in $(seq 100); do
    told=$(octaskly --state-dir $state run -- 'id -un' 2>/root/run.log) && break
    sleep 0.2
done
echo "ran as: $told"
kill $agent || true
wait $agent || cat /root/agent.log /root/run.log
dpkg -r octaskly
test -e $state/mesh.key
test -z "$(find /opt/octaskly -mindepth 1 2>/dev/null)"
dpkg -P octaskly
files >/root/after
diff /root/before /root/after && echo "nothing is left"
"""
MOUNTED = r"""
set -eu
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay \
    -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount --rbind /sys "$1/root/sys"
mount -t tmpfs tmpfs "$1/root/run"
ip link set lo up
cp "$2" "$1/root/root/octaskly.deb"
cp "$3" "$1/root/root/in-root"
exec chroot "$1/root" sh /root/in-root
"""


@pytest.mark.soak
@pytest.mark.netns
@pytest.mark.timeout(BUILD_S)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_deb_installs_runs_a_task_and_purges(dist: Path, tmp_path: Path) -> None:
    """In a root of its own over this system, with real dpkg, scripts and users.

    The user stays, as the policy of `postrm` says; nothing else does.
    """
    debs = list(dist.glob("*.deb"))
    if not debs:
        pytest.skip("there is no dpkg-deb")
    (tmp_path / "in-root").write_text(IN_ROOT)
    (tmp_path / "over").mkdir()
    over, script = tmp_path / "over", tmp_path / "in-root"
    done = subprocess.run(
        [
            *("unshare", "-m", "-n", "-p", "--fork", "--kill-child"),
            *("--propagation", "private", "sh", "-c", MOUNTED, "sh"),
            *(str(over), str(debs[0]), str(script)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nran as: octaskly\n" in done.stdout
    assert done.stdout.endswith("nothing is left\n")
