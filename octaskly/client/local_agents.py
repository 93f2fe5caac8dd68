"""Discovery of the agents on this machine by their sockets."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from octaskly.client.errors import SeveralAgents, Unreachable
from octaskly.client.listener_check import RUN_FOLDER
from octaskly.client.unix_socket import connect_unix
from octaskly.config.defaults import LAN_PORT
from octaskly.config.paths import STATE_BASE, STATE_SOCKET, xdg_folder
from octaskly.config.users import user_name
from octaskly.errors import PermissionDenied

NO_AGENT = "no Octaskly agent is running on this machine"
NO_AGENT_HINT = """\
octaskly agent                try it now, in this terminal
octaskly service install      keep it running, also after a reboot
octaskly --state-dir DIR ...  use the agent that `agent --state-dir DIR` started"""
OTHERS_HINT = f"""\
octaskly token create --role client    as {{user}}: prints a token for you
octaskly ca    as {{user}}: prints the CA of the mesh, for --ca-file
OCTASKLY_TOKEN=... octaskly --url https://127.0.0.1:{LAN_PORT} --ca-file FILE ls
octaskly agent    or run an agent of your own"""
UNIX_SOCKETS: Final = Path("/proc/net/unix")  #: unix(7) sockets of all users
_LISTENING: Final = 1 << 16  #: `__SO_ACCEPTCON` of Linux
_FLAGS: Final = re.compile(r"[0-9A-Fa-f]{1,8}")
_PATH_FIELD: Final = 7


class _AgentDescription(msgspec.Struct):
    """The fields of `agent.json` that a client needs."""

    name: str
    socket: str


def find_agent_socket(
    environ: Mapping[str, str], *, node: str | None, state_dir: Path | None
) -> Path:
    """Return the socket of an agent on this machine.

    Without `node` and `state_dir`, return that of the only running agent.

    Raises:
        Unreachable: no agent answers.
        SeveralAgents: several agents answer and none was chosen.
        PermissionDenied: this user may not use the socket.
    """
    if state_dir is not None:
        return _socket_of_state_dir(state_dir)
    places = dict(find_local_agents(environ, node))
    if node is not None:
        wanted = places.get(node)
        places = {} if wanted is None else {node: wanted}
    answering = {name: path for name, path in places.items() if _is_listening(path)}
    if len(answering) == 1:
        return next(iter(answering.values()))
    if answering:
        raise SeveralAgents(sorted(answering))
    for name, user in find_agents_of_others():
        if node in (None, name):
            raise Unreachable(
                f"you run no agent on this machine; {name} is an agent of user {user}",
                hint=OTHERS_HINT.format(user=user),
            ) from PermissionDenied("only its user and root may use it without a token")
    if node is not None:
        raise Unreachable(
            f"no agent named {node!r} is running on this machine",
            hint=f"octaskly agent --name {node}",
        )
    raise Unreachable(NO_AGENT, hint=NO_AGENT_HINT)


def find_local_agents(
    environ: Mapping[str, str], node: str | None = None
) -> Iterator[tuple[str, Path]]:
    """Yield name and socket of each agent that may be running on this machine.

    Socket folders are searched first, then state folders. The search of the state
    folders is skipped if the socket folders have a socket for `node`.
    """
    folders = [RUN_FOLDER]
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        folders.append(Path(runtime) / "octaskly")
    names: set[str] = set()
    for folder in folders:
        for path in sorted(_glob_or_nothing(folder, "*.sock")):
            if path.stem not in names:
                names.add(path.stem)
                yield path.stem, path
    if node in names:
        return
    states = xdg_folder(environ, *STATE_BASE) / "octaskly"
    for description in sorted(_glob_or_nothing(states, "*/agent.json")):
        described = _try_read_description(description.parent)
        if described is not None and described[0] not in names:
            yield described


def find_agents_of_others(table: Path = UNIX_SOCKETS) -> Iterator[tuple[str, str]]:
    """Yield name and user of each agent that another user runs on this machine.

    Their folders are private, but the kernel lists the sockets of all users.
    """
    try:
        rows = table.read_text(errors="replace").splitlines()[1:]
    except OSError:
        return
    for fields in (row.split(maxsplit=_PATH_FIELD) for row in rows):
        # A path with a newline makes rows of its owner's choice.
        if len(fields) <= _PATH_FIELD or not _FLAGS.fullmatch(fields[3]):
            continue
        if not int(fields[3], 16) & _LISTENING:
            continue
        path = Path(fields[_PATH_FIELD])
        is_in_state = path.name == STATE_SOCKET
        if is_in_state or (path.parent.name == "octaskly" and path.suffix == ".sock"):
            uid = _owner_of(path)
            if uid is not None and uid != os.geteuid():
                name = path.parent.name if is_in_state else path.stem
                yield name, user_name(uid)


def _owner_of(path: Path) -> int | None:
    """Return the owner of the first folder above a socket that this user may see."""
    for place in (path, *path.parents):
        try:
            return place.lstat().st_uid
        except FileNotFoundError:
            return None
        except OSError:
            continue
    return None


def _glob_or_nothing(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(pattern))
    except OSError:
        return []


def _try_read_description(folder: Path) -> tuple[str, Path] | None:
    """Return name and socket of an agent, None if its folder is unreadable."""
    try:
        return _read_description(folder)
    except (OSError, ValueError):
        return None


def _read_description(folder: Path) -> tuple[str, Path]:
    """Return name and socket from the `agent.json` of a state folder."""
    written = (folder / "agent.json").read_bytes()
    description = msgspec.json.decode(written, type=_AgentDescription)
    return description.name, Path(description.socket)


def _is_listening(path: Path) -> bool:
    """Return True if an agent listens; a socket file outlives a crashed agent."""
    try:
        connect_unix(path).close()
    except PermissionError as error:
        raise PermissionDenied(
            f"this user may not use the agent at {path}",
            hint="sudo usermod -aG octaskly $USER    then log in again",
        ) from error
    except OSError:
        return False
    return True


def _socket_of_state_dir(folder: Path) -> Path:
    try:
        described = _read_description(folder)
    except PermissionError:
        raise PermissionDenied(
            f"this user may not read the state folder {folder}",
            hint=f"ls -ld {shlex.quote(str(folder))}    is it yours?",
        ) from None
    except (OSError, ValueError):
        described = None
    if described is None or not _is_listening(described[1]):
        raise Unreachable(
            f"no agent is running with the state folder {folder}",
            hint=f"octaskly agent --state-dir {folder}",
        )
    return described[1]
