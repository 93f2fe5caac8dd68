"""Where the files of an agent lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SYSTEM_FOLDER = Path("/etc/octaskly")
STATE_BASE = ("XDG_STATE_HOME", ".local/state")  #: for `xdg_folder`


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
        """Captured outputs of attempts that ran here."""
        return self.state / "outputs"

    @property
    def scratch(self) -> Path:
        """Fresh folders of attempts that run here and asked for one."""
        return self.state / "scratch"

    @property
    def files(self) -> Path:
        """Files that clients left here for tasks, and copies of such."""
        return self.state / "files"

    @property
    def transcripts(self) -> Path:
        """Long output of attempts that ran here."""
        return self.state / "transcripts"

    def socket_path(self, name: str) -> Path:
        """Return the local socket of the agent of this name."""
        is_own = self.runtime == self.state
        return self.runtime / ("octaskly.sock" if is_own else f"{name}.sock")

    def is_discoverable(self, environ: Mapping[str, str]) -> bool:
        """Return whether commands of this user find the agent without its folder."""
        folders = xdg_folder(environ, *STATE_BASE) / "octaskly"
        return self.runtime != self.state or self.state.parent == folders

    @property
    def description(self) -> Path:
        """What programs on this machine need to find the running agent."""
        return self.state / "agent.json"


def state_dir_default(name: str, environ: Mapping[str, str]) -> Path:
    """Return where an agent of this name keeps its state."""
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    return xdg_folder(environ, *STATE_BASE) / "octaskly" / name


def runtime_dir_default(environ: Mapping[str, str]) -> Path | None:
    """Return the folder for sockets, or None where the state folder must do."""
    if given := environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])
    if given := environ.get("XDG_RUNTIME_DIR"):
        return Path(given) / "octaskly"
    return None


def secret_default(environ: Mapping[str, str], state: Path) -> Path:
    """Return the file of the mesh secret that is used unless a setting names one."""
    if credentials := environ.get("CREDENTIALS_DIRECTORY"):
        given_key = Path(credentials) / "mesh.key"
        # Without a credential a unit makes its own secret, in its state folder.
        return given_key if given_key.exists() else state / "mesh.key"
    return xdg_folder(environ, "XDG_CONFIG_HOME", ".config") / "octaskly" / "mesh.key"


def settings_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the files that may hold settings; what an earlier one says prevails.

    Where systemd names the folder of a service, no other file decides.
    """
    if given := environ.get("CONFIGURATION_DIRECTORY"):
        return (Path(given.split(":")[0]) / "config.toml",)
    own = xdg_folder(environ, "XDG_CONFIG_HOME", ".config") / "octaskly"
    return (own / "config.toml", SYSTEM_FOLDER / "config.toml")


def xdg_folder(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    """Return a base folder after the XDG specification; relative ones are ignored."""
    given = environ.get(variable, "")
    if given.startswith("/"):
        return Path(given)
    return Path(environ.get("HOME") or Path.home()) / fallback
