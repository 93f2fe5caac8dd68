"""`octaskly config`: values in force, their sources, and checks of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octaskly.config.settings import CLIENT_SETTINGS, SETTINGS
from tests.cli.conftest import Run


@pytest.fixture
def file(environ: dict[str, str], tmp_path: Path) -> Path:
    """The settings file of the user who runs the commands."""
    environ.pop("CONFIGURATION_DIRECTORY", None)
    environ.pop("XDG_CONFIG_HOME", None)
    folder = tmp_path / "home/.config/octaskly"
    folder.mkdir(parents=True)
    return folder / "config.toml"


def test_config_shows_each_setting_with_its_source(
    octaskly: Run, environ: dict[str, str], file: Path
) -> None:
    """A default, a file with its line, and a variable."""
    file.write_text('# mine\nslots = 7\nlabels = ["a=1", "b=2"]\n')
    environ["OCTASKLY_RETENTION"] = "48h"

    done = octaskly("config", node="ash")
    rows = {
        line.split()[0]: line.split(maxsplit=1)[1].split("  ")
        for line in done.stdout.decode().splitlines()
    }

    assert done.returncode == 0, done.stderr
    every = (*SETTINGS, *CLIENT_SETTINGS)
    assert list(rows)[1:] == [setting.key for setting in every]
    cells = {key: [cell.strip() for cell in row if cell] for key, row in rows.items()}
    assert cells["name"] == ["--name", "ash"]
    assert cells["slots"] == [f"{file}:2", "7"]
    assert cells["labels"] == [f"{file}:3", "a=1,b=2"]
    assert cells["retention"] == ["OCTASKLY_RETENTION", "2d"]
    assert cells["drain"] == ["default", "30s"]
    assert done.stderr.decode().splitlines()[0] == f"{file}: read"


def test_a_mistyped_variable_is_reported(
    octaskly: Run, environ: dict[str, str], file: Path
) -> None:
    """The agent cannot know that it was meant; `config` warns."""
    environ |= {"OCTASKLY_DURABILTY": "strict", "OCTASKLY_TOKEN": "x"}

    said = octaskly("config").stderr.decode().splitlines()

    assert said[0] == (
        "OCTASKLY_DURABILTY is not a setting; did you mean OCTASKLY_DURABILITY?"
    )
    assert said[1] == f"{file}: not there"


def test_config_as_json_has_typed_values(octaskly: Run, file: Path) -> None:
    """A script compares numbers, not texts."""
    file.write_text('labels = ["a=1"]\n')

    found = json.loads(octaskly("config", "--json", node="ash").stdout)
    settings = found["settings"]

    assert found["files"][0] == {"path": str(file), "exists": True}
    assert settings["drain"] == {
        "value": 30,
        "origin": "default",
        "flag": "--drain",
        "variable": "OCTASKLY_DRAIN",
    }
    assert settings["labels"]["value"] == ["a=1"]
    assert settings["electable"]["value"] is True
    assert settings["api_port"]["value"] is None


@pytest.mark.parametrize(
    "words", [("agent",), ("config",), ("config", "check"), ("ca",), ("db", "reset")]
)
def test_every_reader_of_an_invalid_file_names_its_mistakes(
    octaskly: Run, file: Path, words: tuple[str, ...]
) -> None:
    """In the form of all errors, with the exit code that stops systemd's restarts."""
    file.write_text('slotz = 3\ndrain = "soon"\n')

    done = octaskly(*words, node=None)

    assert done.returncode == 78
    assert done.stdout == b""
    assert done.stderr.decode().splitlines() == [
        "error: 2 settings cannot be used",
        f"    {file}:1: slotz: no such setting; did you mean slots?",
        f"    {file}:2: drain = 'soon': a time like 90, 15m, 24h or 7d, from 0 to 1d",
        "  hint: octaskly agent --help    lists the allowed values",
    ]


def test_check_validates_a_named_file(
    octaskly: Run, file: Path, tmp_path: Path
) -> None:
    """It is checked only: the settings in force do not matter."""
    file.write_text("slotz = 3\n")
    draft = tmp_path / "draft.toml"
    draft.write_text("slots = 3\n")

    good = octaskly("config", "check", str(draft), node=None)
    gone = octaskly("config", "check", str(tmp_path / "none.toml"), node=None)

    assert good.returncode == 0
    assert good.stderr.decode() == f"{draft}: 1 settings, all valid\n"
    assert gone.returncode == 78
    assert gone.stderr.startswith(b"error: there is no file ")


def test_a_quick_command_does_not_read_agent_settings(
    octaskly: Run, file: Path
) -> None:
    """An agent's broken file must not stop `octaskly ls`."""
    file.write_text("slotz = 3\n")

    done = octaskly("ls", node=None)

    assert done.stderr.startswith(b"error: no Octaskly agent is running")
