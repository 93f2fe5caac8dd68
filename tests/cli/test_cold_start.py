"""Cold starts: a command answers in a tenth of a second, so it imports little."""

from __future__ import annotations

import subprocess
import sys

import pytest

from octaskly.cli.command_names import COMMANDS
from tests.cli.conftest import Run
from tests.cli.stand_in import Api

TABLE = "octaskly.config.settings"
HEAVY = (
    *("aiohttp", "zeroconf", "structlog", "cryptography", "jwt", "rich", "asyncio"),
    *("tomllib", TABLE),
)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"],
        ["run", "--", "true"],
        ["submit", "--", "true"],
        ["nodes"],
        ["stats"],
        ["show", "1"],
        ["logs", "1"],
        ["cancel", "1"],
        ["token", "create", "--role", "viewer"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_commands_import_no_heavy_library(
    api: Api, environ: dict[str, str], arguments: list[str]
) -> None:
    """Importing aiohttp alone takes longer than the whole command may."""
    program = (
        "import sys\n"
        "from octaskly.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    print(*sorted(sys.modules), sep='\\n', file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--node", "here", *arguments],
        capture_output=True,
        text=True,
        env=environ,
        timeout=60,
        check=False,
    )
    modules = done.stderr.split()

    assert "click" in modules
    # Commands with settings are imported only for the list of all commands.
    is_list = arguments == ["--help"]
    assert [name for name in HEAVY if name in modules] == [TABLE] * is_list
    if arguments == ["ls"]:  # The values of the core take a tenth of its time.
        assert "octaskly.core.model.tasks" not in modules


def test_an_agent_imports_no_terminal_or_pairing_library() -> None:
    """Rich and its dependencies took 4 MB in each node."""
    program = "import octaskly.agent.lifecycle, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    modules = done.stdout.split()

    assert "structlog" in modules
    assert not {"rich", "pygments", "spake2"} & set(modules)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(octaskly: Run, name: str) -> None:
    """The table of lazy commands names only existing ones."""
    done = octaskly(name, "--help", node=None)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: octaskly {name} ".encode())
