"""`octaskly open`: the dashboard in a browser, or its address."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.stand_in import Api

URL = "http://localhost:3000/#code=node-a.abc"
LAN = "https://10.0.0.7:3443/#code=node-a.abc"
CODE = {"code": "node-a.abc", "expires_at": "x", "url": URL, "lan_url": LAN}


@pytest.fixture
def code_api(api: Api, environ: dict[str, str]) -> Api:
    """A node that issues login codes, on a machine without a screen."""
    api.answers["/api/v1/sessions/codes"] = CODE
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME"):
        environ.pop(name, None)
    return api


def browser(tmp_path: Path, environ: dict[str, str], *, exit_code: int = 0) -> Path:
    """Install a browser that writes its URL to a file; return that file."""
    opened, program = tmp_path / "opened", tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" > {opened}\nexit {exit_code}\n')
    program.chmod(0o755)
    environ["BROWSER"] = str(program)
    return opened


def test_open_starts_a_browser_with_a_code_for_this_user(
    code_api: Api, octaskly: Run, environ: dict[str, str], tmp_path: Path
) -> None:
    """The code is not printed, as it would end up in a screenshot."""
    opened = browser(tmp_path, environ)

    done = octaskly("open")

    assert opened.read_text().strip() == URL
    assert code_api.bodies == [{"good_for": "me"}]
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"opened http://localhost:3000/ in your browser\n"


def test_without_a_screen_the_address_is_printed(code_api: Api, octaskly: Run) -> None:
    """For a browser elsewhere, for example through `ssh -L`; so anybody may open it."""
    done = octaskly("open")

    assert done.stdout.decode() == f"{URL}\n"
    assert code_api.bodies == [{"good_for": "anybody"}]


def test_the_address_is_printed_if_the_browser_fails(
    code_api: Api, octaskly: Run, environ: dict[str, str], tmp_path: Path
) -> None:
    """The user can still open it."""
    browser(tmp_path, environ, exit_code=1)

    done = octaskly("open")

    assert done.stdout.decode() == f"{URL}\n"
    assert b"no browser could be started" in done.stderr
    assert code_api.bodies[-1] == {"good_for": "anybody"}


def test_the_lan_address_is_printed_for_another_machine(
    code_api: Api, octaskly: Run
) -> None:
    """Stdout contains nothing else."""
    assert octaskly("open", "--lan").stdout.decode() == f"{LAN}\n"


def test_a_node_without_a_lan_address_is_an_error(code_api: Api, octaskly: Run) -> None:
    """It is in no mesh yet, or does not serve the LAN."""
    code_api.answers["/api/v1/sessions/codes"] = CODE | {"lan_url": None}
    done = octaskly("open", "--lan")

    assert done.returncode != 0
    assert b"hint: octaskly open --print" in done.stderr
