"""Settings: sources, precedence and refusals."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from octaskly.config.agent import AgentConfig, load_agent_config
from octaskly.config.defaults import RETAINED_BYTES_MIN
from octaskly.config.settings import SETTINGS
from octaskly.errors import ConfigError


class Home:
    """A user's home with settings files."""

    def __init__(self, folder: Path) -> None:
        self.environ = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "own")}
        self.own = folder / "own/octaskly/config.toml"
        self.machine = folder / "machine/config.toml"

    def write(self, text: str, path: Path | None = None) -> Path:
        """Write a settings file, by default the user's."""
        path = path or self.own
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
        return path

    def configure(self, **flags: Any) -> AgentConfig:
        """Return the settings of an agent with these flags."""
        return load_agent_config({"name": "ash", **flags}, self.environ)

    def faults(self, **flags: Any) -> list[str]:
        """Return the lines about refused settings."""
        with pytest.raises(ConfigError) as caught:
            self.configure(**flags)
        return [line.strip() for line in caught.value.message.splitlines()]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr("octaskly.config.paths.SYSTEM_FOLDER", tmp_path / "machine")
    return Home(tmp_path)


def test_flags_precede_variables_own_file_and_system_file(
    home: Home,
) -> None:
    """The nearest source wins, and each value names its source."""
    home.write("slots = 1\ndrain = 1\nqueue_max = 1\nretention = '1d'", home.machine)
    home.write("slots = 2\ndrain = 2\n\nqueue_max = 2")
    home.environ |= {"OCTASKLY_SLOTS": "3", "OCTASKLY_DRAIN": "3"}

    found = home.configure(slots="4")

    assert found.slots == 4
    assert found.options.drain_s == 3
    assert found.options.queue_max == 2
    assert found.options.retention_s == 86_400
    assert found.origins == {
        "name": "--name",
        "slots": "--slots",
        "drain_s": "OCTASKLY_DRAIN",
        "queue_max": f"{home.own}:4",
        "retention_s": f"{home.machine}:4",
    }


def test_a_systemd_folder_excludes_other_files(home: Home, tmp_path: Path) -> None:
    """A service reads nothing from its user's home, which tasks can write."""
    home.write("slots = 1", home.machine)
    home.write("slots = 2")
    home.write("slots = 3", tmp_path / "unit/config.toml")
    home.environ["CONFIGURATION_DIRECTORY"] = str(tmp_path / "unit")

    assert home.configure().slots == 3


def test_every_value_can_be_set_in_a_file(home: Home) -> None:
    """With TOML's own types, and units in quotes."""
    home.write(
        """
        join = ["ash", "10.0.0.2:7000", "[fe80::1]:7878"]
        labels = ["site=attic", "gpu=a100"]
        electable = false
        output_cap = "8 MiB"
        retained_bytes = 16777216
        kill_grace = "1m"
        durability = "strict"
        workdir = "~/work"
        """
    )

    found = home.configure()

    assert found.options.join == (("ash", 7878), ("10.0.0.2", 7000), ("fe80::1", 7878))
    assert found.labels == (("gpu", "a100"), ("site", "attic"))
    assert not found.options.electable
    assert found.options.output_cap_bytes == 8 << 20
    assert found.options.retained_bytes == 16 << 20
    assert found.timing.kill_grace_s == 60
    assert found.is_strict
    assert found.paths.workdir == Path("~/work").expanduser()


def test_a_list_replaces_that_of_another_source(home: Home) -> None:
    """The list in force can be read in one place."""
    home.write('labels = ["a=1"]\ngpus = ["0"]')
    home.environ["OCTASKLY_LABELS"] = "b=2, c=3"

    found = home.configure(gpus=("1", "2"))

    assert found.labels == (("b", "2"), ("c", "3"))
    assert found.options.gpus == ("1", "2")


def test_origins_and_hosts_match_the_form_of_requests(home: Home) -> None:
    """With and without ports; hosts also as addresses."""
    origins = ("https://dash.example", "http://[fe80::1]:8080", "tauri://localhost")
    hosts = ("Pi.lan", "10.0.0.7", "fe80::1", "::1")

    found = home.configure(cors_origins=origins, allow_hosts=hosts).options

    assert (found.cors_origins, found.allow_hosts) == (origins, hosts)


def test_an_empty_variable_is_unset(home: Home) -> None:
    """A unit or a shell unsets a variable so."""
    home.environ["OCTASKLY_DURABILITY"] = ""

    assert not home.configure().is_strict


def test_all_mistakes_of_all_sources_are_reported_at_once(home: Home) -> None:
    """Each with its source, its value, and the allowed values."""
    machine = home.write("api_port = 70000\nslotz = 3", home.machine)
    own = home.write('slots = "8"\n\nlabels = ["a=1", "b"]\n[agent]\nname = "x"')
    home.environ |= {"OCTASKLY_LOG_LEVEL": "verbose"}

    assert home.faults(drain_s="soon", join=("ash:0",)) == [
        "8 settings cannot be used",
        f"{machine}:1: api_port = 70000: a whole number, from 0 to 65535",
        f"{machine}:2: slotz: no such setting; did you mean slots?",
        f"{own}:1: slots = '8': a whole number, from 1 to 4096",
        f"{own}:3: labels = 'b': KEY=VALUE",
        f"{own}:4: agent: no such setting",
        "OCTASKLY_LOG_LEVEL verbose: debug, info, warning or error",
        "--join ash:0: HOST, HOST:PORT or [IPV6]:PORT",
        "--drain soon: a time like 90, 15m, 24h or 7d, from 0 to 1d",
    ]


NODE_NAMES = "A-Z, a-z, 0-9, dots and dashes only, at most 63"


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ({"name": "my pc"}, f"--name 'my pc': {NODE_NAMES}, not U+0020 SPACE; did you"),
        (
            {"name": "👨\u200d👧"},
            rf"--name '👨\u200d👧': {NODE_NAMES}, not U+1F468 MAN",
        ),
        ({"name": "-x"}, f"--name -x: {NODE_NAMES}; did you mean x?"),
        ({"gpus": ("0", "0")}, "--gpu 0: each once"),
        ({"gpus": ("a b",)}, "--gpu 'a b': a number or an id"),
        ({"gpus": tuple(map(str, range(65)))}, "--gpu '65 values': at most 64"),
        ({"labels": ("a=1", "a=2")}, "--label a: each once"),
        ({"slots": "0"}, "--slots 0: a whole number, from 1 to 4096"),
        (
            {"retention_s": "36501d"},
            "--retention 36501d: a time like 90, 15m, 24h or 7d, from 1s to 36500d",
        ),
        ({"join": ("[::1]:70000",)}, "--join '[::1]:70000': HOST"),
        ({"join": ("pi4..local",)}, "--join pi4..local: HOST"),
        (
            {"retained_bytes": str(RETAINED_BYTES_MIN - 1)},
            "--retained-bytes 15999999: a size like 65536, 10G or 64MiB, at least 16M",
        ),
        (
            {"output_quota_bytes": "5M"},
            "--output-quota: 5M: at least output_cap, which is 64M",
        ),
        ({"name": "\x1b[2J"}, r"--name '\x1b[2J': "),
        ({"cors_origins": ("https://a.example/",)}, "--cors-origin https://a.example/"),
        ({"cors_origins": ("a.example",)}, "--cors-origin a.example: SCHEME://HOST"),
        ({"cors_origins": ("https://A.example",)}, "--cors-origin https://A.example: "),
        ({"cors_origins": ("*",)}, "--cors-origin '*': "),
        ({"allow_hosts": ("desk.lan:3443",)}, "--allow-host desk.lan:3443: the name"),
        ({"allow_hosts": ("https://desk.lan",)}, "--allow-host https://desk.lan: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_invalid_flags_end_the_agent(
    home: Home, flags: dict[str, Any], fault: str
) -> None:
    """The message names the flag and its allowed values."""
    [line] = home.faults(**flags)

    assert line.startswith(fault)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('name = "ash\n', "Illegal character '\\n' (at line 1, column 12)"),
        ("slots = 1\nslots = 2\n", "Cannot overwrite a value (at line 2, column 10)"),
        ("x = " + "[" * 5000, ""),
        ("#" * (64 << 10) + "#", "not a regular file, or over 65536 bytes"),
    ],
    ids=["open string", "twice", "deep", "long"],
)
def test_a_file_that_is_not_toml_is_refused_by_name(
    home: Home, text: str, fault: str
) -> None:
    """The message has the line, if TOML's parser knows it."""
    path = home.write(text)

    [line] = home.faults()

    assert line.startswith(f"{path}: {fault}")


def test_a_file_that_is_not_utf8_is_refused(home: Home) -> None:
    """Another program wrote it."""
    home.write("").write_bytes(b'name = "\xff"')

    [line] = home.faults()

    assert "'utf-8' codec can't decode" in line


@pytest.mark.parametrize("mode", [0o602, 0o620, 0o666], ids=oct)
def test_a_file_that_others_can_write_is_refused(home: Home, mode: int) -> None:
    """Its author decides which commands run."""
    path = home.write("slots = 1")
    path.chmod(mode)

    [line] = home.faults()

    assert line == f"{path}: others may write it (mode {mode:04o}): chmod go-w {path}"


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away takes root")
def test_a_file_of_another_user_is_refused(home: Home) -> None:
    """Its owner can change it at any time."""
    path = home.write("slots = 1")
    os.chown(path, 12345, -1)

    [line] = home.faults()

    assert line == f"{path}: it belongs to user 12345: sudo chown root {path}"


def test_a_fifo_instead_of_a_file_does_not_block_the_start(home: Home) -> None:
    """Opening a FIFO would wait for a writer."""
    home.own.parent.mkdir(parents=True)
    os.mkfifo(home.own, 0o600)

    [line] = home.faults()

    assert line == f"{home.own}: not a regular file, or over 65536 bytes"


@pytest.mark.parametrize(
    "setting",
    [setting for setting in SETTINGS if setting.default not in (None, ())],
    ids=lambda setting: setting.key,
)
def test_a_default_can_be_set_as_it_is_shown(home: Home, setting: Any) -> None:
    """The output of `octaskly config` may be copied into a variable."""
    home.environ[setting.variable] = setting.value_type.format(setting.default)

    found = home.configure()

    assert getattr(found.options, setting.field) == setting.default


def test_commands_look_for_the_socket_in_the_folder_of_the_file(
    home: Home, tmp_path: Path
) -> None:
    """A folder from a flag or variable is one of several, and keeps its socket."""
    home.environ["XDG_RUNTIME_DIR"] = str(tmp_path / "run")
    home.write(f'state_dir = "{tmp_path}/state"')

    by_file, by_flag = home.configure(), home.configure(state_dir=str(tmp_path / "b"))

    assert by_file.paths.socket_path("ash") == tmp_path / "run/octaskly/ash.sock"
    assert by_flag.paths.socket_path("ash") == tmp_path / "b/octaskly.sock"


def test_an_agent_knows_whether_commands_can_find_it(
    home: Home, tmp_path: Path
) -> None:
    """Commands look in the socket folder and below the default state folder."""
    home.environ.pop("XDG_RUNTIME_DIR", None)
    default, apart = home.configure(), home.configure(state_dir=str(tmp_path / "b"))

    assert default.paths.is_discoverable(home.environ)
    assert not apart.paths.is_discoverable(home.environ)

    home.environ["XDG_RUNTIME_DIR"] = str(tmp_path / "run")
    assert home.configure().paths.is_discoverable(home.environ)


def test_heartbeats_wake_an_agent_before_its_own_tick(
    home: Home,
) -> None:
    """A tick between heartbeats would double the cost of an idle node."""
    timing = home.configure().timing

    assert timing.heartbeat_s < timing.tick_s < timing.suspicion_timeout_s / 3
