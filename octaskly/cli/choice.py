"""Which node a command talks to.

Either a URL with a token, or the local socket of an agent on this machine. Where
nobody chose, the only agent that answers is taken; several are listed.
"""

from __future__ import annotations

import http
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octaskly.cli.render import note
from octaskly.client import ApiError, Client, Unreachable, connect_unix
from octaskly.config.places import xdg
from octaskly.errors import ConfigError, MeshError, PermissionDenied

RUN_FOLDER = Path("/run/octaskly")
PROBE_S = 1.0
SUFFIX_DIGITS = 8  #: in which an id ends that a node made
SUFFIX_MIN = 4  #: a shorter end of an id is more likely something else
LOOKED_AT = 1000  #: newest tasks

NO_AGENT = "no Octaskly agent is running on this machine"
NO_AGENT_HINT = """\
octaskly agent                try it now, in this terminal
octaskly service install      keep it running, also after a reboot"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the user said about the node to use."""

    node: str | None = None
    state_dir: Path | None = None
    url: str | None = None
    ca_file: Path | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def client(self, *, is_silent: bool = False) -> Client:
        """Return a client of the node that these options mean.

        It says on stderr what it waits for, unless it `is_silent`.

        Raises:
            Unreachable: no agent answers.
            ConfigError: several answer and none was chosen; an option is unusable.
            PermissionDenied: the agent's socket is not for this user.
        """
        on_wait = None if is_silent else _say_waiting
        if self.url:
            return Client.at_url(
                self.url,
                token=self.environ.get("OCTASKLY_TOKEN"),
                ca_file=self.ca_file,
                on_wait=on_wait,
            )
        return Client.at_socket(self.socket(), on_wait=on_wait)

    def flags(self) -> dict[str, Any]:
        """Return what is said of the agent's own settings, by their fields."""
        is_flag = str(self.state_dir) != self.environ.get("OCTASKLY_STATE_DIR")
        return {"name": self.node, "state_dir": self.state_dir if is_flag else None}

    def socket(self) -> Path:
        """Return the socket of the local agent that these options mean."""
        if self.state_dir is not None:
            return self._of_state_dir(self.state_dir)
        places = dict(agents_here(self.environ, self.node))
        if self.node is not None:
            wanted = places.get(self.node)
            places = {} if wanted is None else {self.node: wanted}
        answering = {name: path for name, path in places.items() if _answers(path)}
        if len(answering) == 1:
            return next(iter(answering.values()))
        if answering:
            first = min(answering)
            raise ConfigError(
                f"several agents run on this machine: {', '.join(sorted(answering))}",
                hint=f"octaskly --node {first} ...",
            )
        if self.node is not None:
            raise Unreachable(
                f"no agent named {self.node!r} is running on this machine",
                hint=f"octaskly agent --name {self.node}",
            )
        raise Unreachable(NO_AGENT, hint=NO_AGENT_HINT)

    def _of_state_dir(self, folder: Path) -> Path:
        described = _described(folder)
        if described is None or not _answers(described[1]):
            raise Unreachable(
                f"no agent is running with the state folder {folder}",
                hint=f"octaskly agent --state-dir {folder}",
            )
        return described[1]


def agents_here(
    environ: Mapping[str, str], node: str | None = None
) -> Iterator[tuple[str, Path]]:
    """Yield name and socket of agents that may be running on this machine.

    Folders of the state come last, and only where no socket lies in a folder for
    sockets, unless `node` asks for one that was not found there.
    """
    folders = [RUN_FOLDER]
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        folders.append(Path(runtime) / "octaskly")
    names: set[str] = set()
    for folder in folders:
        for path in sorted(_listed(folder, "*.sock")):
            if path.stem not in names:
                names.add(path.stem)
                yield path.stem, path
    if node in names:
        return
    states = xdg(environ, "XDG_STATE_HOME", ".local/state") / "octaskly"
    for description in sorted(_listed(states, "*/agent.json")):
        described = _described(description.parent)
        if described is not None and described[0] not in names:
            yield described


def _listed(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(pattern))
    except OSError:
        return []


def _described(folder: Path) -> tuple[str, Path] | None:
    """Return name and socket from the `agent.json` of a state folder."""
    try:
        description = json.loads((folder / "agent.json").read_bytes())
        return str(description["name"]), Path(description["socket"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _answers(path: Path) -> bool:
    """Whether somebody listens there; a socket file outlives an agent that died."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PROBE_S)
        try:
            connect_unix(sock, path)
        except PermissionError as error:
            raise PermissionDenied(
                f"this user may not use the agent at {path}",
                hint="sudo usermod -aG octaskly $USER    then log in again",
            ) from error
        except OSError:
            return False
    return True


def _say_waiting(refused: ApiError) -> None:
    note(f"{refused}; waiting")


def resolve_ref(client: Client, ref: str) -> str:
    """Return what the API understands of what people call a task.

    That is a full id, its number, `last`, the end of an id, or a name; the latter two
    are looked for among the newest tasks, and no others.

    Raises:
        MeshError: there is no last task, or what fits is not one task alone.
        ApiError: there is no such task.
    """
    if ref == "last":
        newest = client.newest()
        if newest is None:
            raise MeshError("there is no task yet", hint="octaskly run -- echo hello")
        return newest
    full = padded(ref)
    if full.startswith("task-") and not (full != ref and len(ref) == SUFFIX_DIGITS):
        return full
    try:
        return client.task(full).id
    except ApiError as error:
        if error.status != http.HTTPStatus.NOT_FOUND:
            raise
        return _looked_up(client, ref) or full


def _looked_up(client: Client, ref: str) -> str | None:
    """Return the only task among the newest that ends so, or has this name."""
    found = [
        task.id
        for task in client.newest_tasks(LOOKED_AT)
        if task.name == ref or (len(ref) >= SUFFIX_MIN and task.id.endswith(ref))
    ]
    if len(found) > 1:
        raise MeshError(
            f"{ref!r} may be any of {len(found)} tasks, the newest first:"
            f" {', '.join(found[:3])}",
            hint=f"octaskly show {found[0]}",
        )
    return found[0] if found else None


def padded(ref: str) -> str:
    """Return `task-012` for `12`, anything else as it is."""
    is_number = ref.isascii() and ref.isdigit()
    return f"task-{int(ref):03}" if is_number else ref
