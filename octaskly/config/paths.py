"""Paths of the files of an agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SYSTEM_FOLDER = Path("/etc/octaskly")
STATE_BASE = ("XDG_STATE_HOME", ".local/state")  #: for `xdg_folder`
STATE_SOCKET = "octaskly.sock"  #: in a state folder, if there is no runtime folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """The files of one agent."""

    state: Path  #: mode 0700; everything below belongs to this agent alone
    workdir: Path  #: where tasks run
    secret: Path  #: mesh secret, shared by all agents of one user on one machine
    runtime: Path  #: folder of the socket

    @property
    def database(self) -> Path:
        """The log."""
        return self.state / "log.db"

    @property
    def outputs(self) -> Path:
        """Declared outputs captured from attempts that ran here."""
        return self.state / "outputs"

    @property
    def scratch(self) -> Path:
        """Scratch folders of attempts that run here."""
        return self.state / "scratch"

    @property
    def files(self) -> Path:
        """Files that clients uploaded for tasks, and copies of files of other nodes."""
        return self.state / "files"

    @property
    def transcripts(self) -> Path:
        """Output of attempts that is too long for their results."""
        return self.state / "transcripts"

    def socket_path(self, name: str) -> Path:
        """Return the path of the local socket of the agent `name`."""
        is_own = self.runtime == self.state
        return self.runtime / (STATE_SOCKET if is_own else f"{name}.sock")

    def is_discoverable(self, environ: Mapping[str, str]) -> bool:
        """Return True if commands of this user find the agent by its name alone."""
        folders = xdg_folder(environ, *STATE_BASE) / "octaskly"
        return self.runtime != self.state or self.state.parent == folders

    @property
    def description(self) -> Path:
        """The file from which programs on this machine find the running agent."""
        return self.state / "agent.json"


def state_dir_default(name: str, environ: Mapping[str, str]) -> Path:
    """Return the default state folder of the agent `name`."""
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    return xdg_folder(environ, *STATE_BASE) / "octaskly" / name


def runtime_dir_default(environ: Mapping[str, str]) -> Path | None:
    """Return the default folder for sockets; None to use the state folder."""
    if given := environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])
    if given := environ.get("XDG_RUNTIME_DIR"):
        return Path(given) / "octaskly"
    return None


def secret_default(environ: Mapping[str, str], state: Path) -> Path:
    """Return the default path of the mesh secret."""
    if credentials := environ.get("CREDENTIALS_DIRECTORY"):
        given_key = Path(credentials) / "mesh.key"
        # Without a credential, the agent creates a secret in its state folder.
        return given_key if given_key.exists() else state / "mesh.key"
    return xdg_folder(environ, "XDG_CONFIG_HOME", ".config") / "octaskly" / "mesh.key"


def settings_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the settings files. Earlier ones override later ones.

    If systemd sets the configuration folder of a service, only its file is used.
    """
    if given := environ.get("CONFIGURATION_DIRECTORY"):
        return (Path(given.split(":")[0]) / "config.toml",)
    own = xdg_folder(environ, "XDG_CONFIG_HOME", ".config") / "octaskly"
    return (own / "config.toml", SYSTEM_FOLDER / "config.toml")


def xdg_folder(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    """Return a base folder of the XDG specification; relative paths are ignored."""
    given = environ.get(variable, "")
    if given.startswith("/"):
        return Path(given)
    return Path(environ.get("HOME") or Path.home()) / fallback
