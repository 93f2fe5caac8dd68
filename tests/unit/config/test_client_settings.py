"""The node that commands ask, by the nearest source of settings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from octaskly.client.endpoint import Endpoint, resolve_endpoint
from octaskly.config import paths
from octaskly.config.client_settings_file import CLIENT_KEYS
from octaskly.config.settings import CLIENT_SETTINGS
from octaskly.errors import ConfigError


class Machine:
    """Files and variables that the settings read."""

    def __init__(self, folder: Path) -> None:
        self.own = folder / "home/.config/octaskly/config.toml"
        self.system = folder / "etc/config.toml"
        for file in (self.own, self.system):
            file.parent.mkdir(parents=True)
        self.environ = {"HOME": str(folder / "home")}

    def target(self, url: str | None = None, node: str | None = None) -> Endpoint:
        return resolve_endpoint(url, node=node, environ=self.environ)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(paths, "SYSTEM_FOLDER", tmp_path / "etc")
    return Machine(tmp_path)


def test_the_nearest_source_with_a_node_decides(machine: Machine) -> None:
    """Order: arguments, variables, the user's file, the machine's file."""
    asked = [machine.target().url]
    machine.system.write_text('url = "https://system:3443"\n')
    asked.append(machine.target().url)
    machine.own.write_text('slots = 2\nurl = "https://own:3443"\n')
    asked.append(machine.target().url)
    machine.environ["OCTASKLY_URL"] = "https://variable:3443"
    asked.append(machine.target().url)
    asked.append(machine.target("https://given:3443").url)
    asked.append(machine.target(node="ash").url)

    hosts = ["system", "own", "variable", "given"]
    assert asked == [None, *(f"https://{host}:3443" for host in hosts), None]


def test_a_nearer_agent_prevails_over_a_url(machine: Machine) -> None:
    """One source names the node; another one does not correct it."""
    machine.system.write_text('url = "https://system:3443"\n')
    machine.own.write_text('node = "ash"\n')
    by_file = machine.target()
    machine.environ["OCTASKLY_STATE_DIR"] = "/state"
    by_variable = machine.target()

    assert (by_file.url, by_file.node) == (None, "ash")
    assert (by_variable.node, by_variable.state_dir) == (None, Path("/state"))


def test_local_commands_ignore_a_remote_node(machine: Machine) -> None:
    """`octaskly join` and the like act on the agent of this machine."""
    machine.own.write_text('url = "https://own:3443"\n')
    machine.system.write_text('node = "ash"\n')
    machine.environ["OCTASKLY_URL"] = "https://variable:3443"

    here = resolve_endpoint(environ=machine.environ, is_local=True)

    assert (here.url, here.node) == (None, "ash")


def test_a_ca_may_come_from_another_source_than_the_url(machine: Machine) -> None:
    """A laptop sets both once; a token is no setting, because files are copied."""
    machine.own.write_text('url = "https://own:3443"\nca_file = "~/ca.pem"\n')
    machine.environ |= {"OCTASKLY_TOKEN": "secret"}
    place = machine.target()
    machine.environ["OCTASKLY_CA_FILE"] = "/other.pem"

    assert (place.token, place.ca) == ("secret", Path.home() / "ca.pem")
    assert machine.target().ca == Path("/other.pem")
    assert "secret" not in repr(place)


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        ('url = "https://a:1"', 0o666, "others may write it"),
        ("url = 7", 0o600, "url is not text"),
        ('url = "https://a:1', 0o600, "config.toml"),
        ('url = "https://a:1"\nca_file = "ca.pem"', 0o600, "begins with / or ~/"),
        ('url = "http://a:1"', 0o600, "unencrypted"),
    ],
)
def test_an_unusable_file_is_an_error(
    machine: Machine, text: str, mode: int, why: str
) -> None:
    """The author of the file decides which node gets the token."""
    machine.own.write_text(text)
    machine.own.chmod(mode)

    with pytest.raises(ConfigError, match=why):
        machine.target()


def test_commands_ignore_files_for_agents_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents report their faults, and parsing would slow down each command."""
    monkeypatch.setitem(sys.modules, "tomllib", None)
    machine.own.write_text("slots = [\n")
    machine.system.mkdir()

    assert machine.target().url is None


def test_commands_read_keys_of_the_settings_table() -> None:
    """The keys are listed twice, because importing the table takes long."""
    assert tuple(setting.key for setting in CLIENT_SETTINGS) == CLIENT_KEYS
