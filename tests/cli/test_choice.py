"""The node that a command uses, and the errors if that fails."""

from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.stand_in import TOKEN, Api, serving
from tests.support.agents import AS_OTHERS

needs_no_installed_agent = pytest.mark.skipif(
    Path("/run/octaskly").exists(), reason="an agent is installed on this machine"
)


def in_folder(folder: str, place: str) -> Path:
    path = Path(folder) / place
    path.parent.mkdir(parents=True)
    return path


def dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@needs_no_installed_agent
def test_the_only_agent_that_answers_is_used(
    api: Api, octaskly: Run, tmp_path: Path
) -> None:
    """The socket file of a killed agent remains; it is skipped."""
    dead_socket(tmp_path / "run" / "octaskly" / "gone.sock")

    assert octaskly("nodes", node=None).returncode == 0


@needs_no_installed_agent
def test_several_agents_are_listed(api: Api, octaskly: Run, tmp_path: Path) -> None:
    """A guess could run commands on the wrong mesh."""
    with serving(Api(name="other"), tmp_path / "run" / "octaskly" / "other.sock"):
        done = octaskly("ls", node=None)

    assert done.returncode == 78
    assert done.stderr.decode() == (
        "error: several agents run on this machine: here, other\n"
        "  hint: octaskly --node here ...\n"
    )


def test_the_node_flag_chooses_among_several(
    api: Api, octaskly: Run, tmp_path: Path
) -> None:
    """By name, which is that of the socket."""
    other = Api(name="other")
    with serving(other, tmp_path / "run" / "octaskly" / "other.sock"):
        octaskly("nodes", node="other")

    assert not api.requests
    assert other.requests


def test_an_unknown_node_is_named(api: Api, octaskly: Run) -> None:
    """The hint starts it."""
    done = octaskly("ls", node="nobody")

    assert done.returncode == 5
    assert done.stderr.decode() == (
        "error: no agent named 'nobody' is running on this machine\n"
        "  hint: octaskly agent --name nobody\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("place", ["run/octaskly/desk", "desk/octaskly"])
def test_the_agent_of_another_user_is_named(octaskly: Run, place: str) -> None:
    """Its folder is private, so it looks as if no agent ran."""
    with (
        tempfile.TemporaryDirectory() as theirs,  # The path of a socket is short.
        serving(Api(name="desk"), path := in_folder(theirs, f"{place}.sock")),
    ):
        os.chown(path, pwd.getpwnam("nobody").pw_uid, -1)
        alone = octaskly("ls", node=None)
        named = octaskly("ls", node="desk")
        other = octaskly("ls", node="other")

    assert alone.returncode == 5
    assert alone.stderr.decode() == (
        "error: you run no agent on this machine; desk is an agent of user nobody\n"
        "  cause: only its user and root may use it without a token\n"
        "  hint: octaskly token create --role client    as nobody: prints a token"
        " for you\n"
        "  hint: octaskly ca    as nobody: prints the CA of the mesh, for --ca-file\n"
        "  hint: OCTASKLY_TOKEN=... octaskly --url https://127.0.0.1:3443 --ca-file"
        " FILE ls\n"
        "  hint: octaskly agent    or run an agent of your own\n"
    )
    assert named.stderr == alone.stderr
    assert other.stderr.startswith(b"error: no agent named 'other' is running")


@pytest.mark.parametrize("folder", ["s", "a-very-long-folder-name-" * 4])
def test_state_dir_chooses_by_description(
    octaskly: Run, tmp_path: Path, folder: str
) -> None:
    """`agent.json` names the socket, whose path may be longer than an address."""
    state = tmp_path / folder
    state.mkdir()
    # Bound in a short folder and moved: the server has no way around the limit.
    api = Api()
    with serving(api, tmp_path / "x.sock"):
        (tmp_path / "x.sock").rename(state / "x.sock")
        (state / "agent.json").write_text(
            json.dumps({"name": "x", "socket": str(state / "x.sock")})
        )
        done = octaskly("--state-dir", str(state), "nodes", node=None)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_an_unreadable_state_folder_is_not_reported_as_empty(
    environ: dict[str, str], tmp_path: Path, how: str
) -> None:
    """An agent may run there, so the hint must not start another one."""
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o000)
    chosen = ["--state-dir", str(folder)] if how == "flag" else []
    if how == "variable":
        environ["OCTASKLY_STATE_DIR"] = str(folder)

    done = subprocess.run(
        [*AS_OTHERS, sys.executable, "-m", "octaskly", *chosen, "nodes"],
        capture_output=True,
        env=environ,
        timeout=60,
        check=False,
    )

    assert done.returncode == 4
    said = f"error: this user may not read the state folder {folder}\n"
    assert done.stderr.decode().startswith(said)


def test_an_agent_in_a_state_folder_is_found_by_name(
    octaskly: Run, tmp_path: Path
) -> None:
    """Without a folder for sockets, the socket is in the state folder."""
    state = tmp_path / "state" / "octaskly" / "lone"
    state.mkdir(parents=True)
    api = Api()
    with serving(api, state / "agent.sock"):
        (state / "agent.json").write_text(
            json.dumps({"name": "lone", "socket": str(state / "agent.sock")})
        )
        done = octaskly("nodes", node="lone")

    assert done.returncode == 0, done.stderr


def test_a_settings_file_names_the_node(
    api: Api, octaskly: Run, environ: dict[str, str], tmp_path: Path
) -> None:
    """A laptop outside the mesh needs no flags; nearer sources prevail."""
    environ |= {"OCTASKLY_TOKEN": TOKEN, "XDG_CONFIG_HOME": str(tmp_path)}
    environ.pop("CONFIGURATION_DIRECTORY", None)
    (tmp_path / "octaskly").mkdir()
    far, other = Api(needs_token=True), Api()
    with serving(far) as url, serving(other) as other_url:
        (tmp_path / "octaskly/config.toml").write_text(f'url = "{url}"\n')
        by_file = octaskly("ls", node=None)
        octaskly("ls", node="here")
        environ["OCTASKLY_URL"] = other_url
        octaskly("ls", node=None)

    assert by_file.returncode == 0, by_file.stderr
    counts = [len(each.requests) for each in (far, api, other)]
    assert counts[0] > 0
    assert counts == counts[:1] * 3


def test_url_takes_the_token_from_the_environment(
    octaskly: Run, environ: dict[str, str]
) -> None:
    """Every user of the machine could see a token on the command line."""
    api = Api(needs_token=True)
    with serving(api) as url:
        without = octaskly("--url", url, "ls", node=None)
        environ["OCTASKLY_TOKEN"] = TOKEN
        with_token = octaskly("--url", url, "ls", node=None)

    assert without.returncode == 4
    assert without.stderr.decode().splitlines() == [
        "error: Missing or invalid authentication token",
        "  hint: export OCTASKLY_TOKEN=...    with a token of this mesh",
    ]
    assert with_token.returncode == 0


@pytest.mark.parametrize(
    "url",
    [
        "localhost:3000",
        "ftp://x",
        "http://",
        "http://x:abc",
        "http://x:99999",
        "https://pi4..local:3443",
    ],
)
def test_an_unusable_url_is_named(octaskly: Run, url: str) -> None:
    """Exit 78, as for every setting."""
    done = octaskly("--url", url, "ls", node=None)

    assert done.returncode == 78
    assert url in done.stderr.decode() or "port" in done.stderr.decode()


def test_an_unreachable_url_is_exit_5(octaskly: Run) -> None:
    """The cause is the system's own text."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        done = octaskly("--url", url, "ls", node=None)

    assert done.returncode == 5
    assert done.stderr.decode().startswith(f"error: no agent answers at {url}\n")
    assert "cause: [Errno 111] Connection refused" in done.stderr.decode()


@pytest.mark.parametrize(
    ("status", "code"), [(400, 2), (401, 4), (403, 4), (404, 3), (409, 1), (500, 1)]
)
def test_each_kind_of_refusal_has_its_own_exit_code(
    api: Api, octaskly: Run, status: int, code: int
) -> None:
    """Scripts need the code; the error's cause has the details."""
    api.refuse = lambda _method, _path: (status, {})

    done = octaskly("show", "task-001-00000001")

    assert done.returncode == code
    assert done.stderr.decode().startswith("error: Refused\n  cause: the test said so")


def test_a_viewer_is_not_advised_to_become_admin(api: Api, octaskly: Run) -> None:
    """The client role is enough to submit and cancel."""
    api.refuse = lambda _method, _path: (403, {})

    done = octaskly("submit", "--", "true")

    assert b"  hint: octaskly token create --role client " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["lss"],
            (
                "error: there is no command 'lss'\n"
                "  cause: did you mean `ls`? Nothing was run\n"
                "  hint: octaskly ls\n"
            ),
        ),
        (
            ["ls", "--limit", "0"],
            (
                "error: invalid value for '-n' / '--limit': 0 is not in the range"
                " 1<=x<=1000\n"
                "  hint: octaskly ls --help\n"
            ),
        ),
        (
            ["ls", "--url", "x"],
            (
                "error: no such option '--url'\n"
                "  cause: it selects a node, so it comes before the command\n"
                "  hint: octaskly --url VALUE ls ...\n"
            ),
        ),
        (
            ["run", "--timeout", "soon", "--", "true"],
            (
                "error: invalid value for '--timeout': "
                "'soon' is not a time like 90, 15m, 24h or 7d\n"
                "  hint: octaskly run --help\n"
            ),
        ),
    ],
)
def test_a_usage_error_states_the_mistake_and_the_fix(
    octaskly: Run, arguments: list[str], text: str
) -> None:
    """Exit 2, in the form of every other error."""
    done = octaskly(*arguments, node=None)

    assert (done.returncode, done.stderr.decode()) == (2, text)
