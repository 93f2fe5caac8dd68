"""The start of a node: its folders, its description and the `--join` names."""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import socket
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from octaskly import __version__
from octaskly.agent.gateway.mesh_view import lan_url
from octaskly.config.agent import AgentConfig
from octaskly.config.defaults import API_PORT, LAN_PORT, PEER_PORT
from octaskly.config.paths import Paths
from octaskly.config.task_account import Account
from octaskly.config.users import user_name
from octaskly.core.model.ids import Address
from octaskly.core.model.nodes import NodeInfo
from octaskly.errors import ConfigError
from octaskly.rest.mesh import Checkup, FileStoreUsage, MovedPort, TakenPort
from octaskly.runner.files.task_user_ops import TaskUserHelper
from octaskly.runner.interpreters import find_interpreters
from octaskly.system.build import build_id
from octaskly.system.listening_sockets import LoopbackPort
from octaskly.system.log import Logger
from octaskly.system.machine_stats import is_on_mains_power, list_gpus, memory_total_mb
from octaskly.trust.name_constraints import is_local

SOCKET_PATH_BYTES_MAX = 107  #: unix(7), without the final NUL
OTHER_FOLDER_HINT = "octaskly agent {} DIR uses another one"
SEED_RETRY_S = 10.0  #: between two lookups of a `--join` name that has no address


def check_socket_path(paths: Paths, name: str) -> None:
    """Raise ConfigError if the path of an agent's socket is too long."""
    path = paths.socket_path(name)
    if (size := len(os.fsencode(path))) > SOCKET_PATH_BYTES_MAX:
        raise ConfigError(
            f"{path} has {size} bytes, but the path of a socket may have"
            f" {SOCKET_PATH_BYTES_MAX} at most",
            hint="octaskly agent --state-dir DIR, with a shorter path",
        )


def make_folders(paths: Paths, account: Account | None = None) -> None:
    """Create the folders of an agent; only its own user can read its state.

    Args:
        paths: The paths of the folders.
        account: The user that tasks run as; None: the agent's own. It can enter the
            state folder, and write in the folders where tasks run.

    Raises:
        ConfigError: a folder cannot be created or entered.
    """
    for folder, mode in (
        (paths.state, 0o700),
        (paths.outputs, 0o700),
        (paths.workdir, 0o755),
        (paths.runtime, 0o755),
    ):
        flag = "--workdir" if folder == paths.workdir else "--state-dir"
        hint = OTHER_FOLDER_HINT.format(flag)
        try:
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot create the folder {folder}: {error.strerror}", hint=hint
            ) from error
        is_ours = account is None or folder != paths.workdir
        if is_ours and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(
                f"the folder {folder} is not writable for this user", hint=hint
            )
    if account is not None:
        _grant_task_user(paths, account)


def _grant_task_user(paths: Paths, account: Account) -> None:
    """Give the task user access to the agent's folders, and check the access."""
    try:
        if os.geteuid() != 0:
            # Only a member of a group may give files to that group.
            os.setgroups(sorted({*os.getgroups(), account.gid}))
        paths.scratch.mkdir(mode=0o700, exist_ok=True)
        paths.state.chmod(0o711)
        _share_with_group(paths.scratch, account, 0o770)
        if paths.state in paths.workdir.parents:
            _share_with_group(paths.workdir, account, 0o770)
        with closing(TaskUserHelper(account)) as helper:
            unusable = helper.unwritable_folders([paths.workdir, paths.scratch])
    except OSError as error:
        raise ConfigError(
            f"--task-user {account.name}: tasks cannot run as that user: {error}",
            hint=f"octaskly agent --state-dir DIR, a folder that {account.name}"
            " may enter",
        ) from error
    if unusable:
        flag = (
            "--state-dir" if paths.state in Path(unusable[0]).parents else "--workdir"
        )
        raise ConfigError(
            f"tasks run as {account.name}, who cannot write in {unusable[0]}",
            hint=f"octaskly agent {flag} DIR, where {account.name} may enter all"
            " folders above, for example /var/lib/octaskly",
        )


def _share_with_group(folder: Path, account: Account, mode: int) -> None:
    os.chown(folder, -1, account.gid)
    folder.chmod(mode)


def describe_agent(
    config: AgentConfig,
    node: NodeInfo,
    *,
    mesh: str | None,
    loopback_port: LoopbackPort,
    streams: int = 0,
    stores: Sequence[FileStoreUsage] = (),
) -> Checkup:
    """Return the description of a running agent for `agent.json` and `doctor`."""
    options, taken = config.options, None
    api_port, taken_port = loopback_port.port, loopback_port.taken_port
    if taken_port is not None:
        taken = TakenPort(port=taken_port, holder=loopback_port.holder)
    ports = (
        ("api", options.api_port, API_PORT, api_port or 0),
        ("peer", options.peer_port, PEER_PORT, node.peer_port),
        ("lan", options.lan_port, LAN_PORT, node.lan_port),
    )
    is_member = mesh is not None
    return Checkup(
        name=node.name,
        node_id=node.id,
        pid=os.getpid(),
        version=node.version,
        build=build_id(),
        api_url=f"http://localhost:{api_port}" if api_port else None,
        api_port_taken=taken,
        socket=str(config.paths.socket_path(node.name)),
        state_dir=str(config.paths.state),
        secret_file=str(config.paths.secret),
        interfaces=list(options.interfaces),
        seeds=list(config.seeds),
        moved_ports=[
            MovedPort(port=name, wanted=default, used=used)
            for name, asked, default, used in ports
            if asked is None and used not in (default, 0)
        ],
        descriptors_max=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        streams=streams,
        stores=list(stores),
        was_renewed=config.was_renewed,
        task_user=config.options.task_user or user_name(os.geteuid()),
        mesh=mesh,
        lan_url=_public_url(node) if is_member else UNSET,
        peer_port=node.peer_port if is_member else UNSET,
    )


def _public_url(node: NodeInfo) -> str:
    """Return the LAN URL for people, with a certificate of the mesh if possible."""
    local = filter(is_local, node.addresses)
    return lan_url(next(local, node.addresses[0]), node.lan_port)


def node_info(config: AgentConfig, name: str, **known: Any) -> NodeInfo:
    """Return the information that a node announces.

    Args:
        config: The settings.
        name: The name of the node in the mesh.
        known: Fields that depend neither on settings nor on the machine.
    """
    return NodeInfo(
        name=name,
        slots=config.slots,
        version=__version__,
        memory_mb=memory_total_mb(),
        labels=config.labels,
        electable=config.options.electable,
        has_mains_power=is_on_mains_power(),
        os=platform.system().lower(),
        arch=platform.machine(),
        cpus=os.cpu_count() or 1,
        gpus=config.options.gpus or list_gpus(),
        pythons=tuple(find_interpreters(os.environ.get("PATH"))),
        **known,
    )


def write_description(config: AgentConfig, described: Checkup) -> None:
    """Write `agent.json` atomically."""
    path = config.paths.description
    draft = path.with_suffix(".new")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(described)) + b"\n")
    draft.chmod(0o600)
    draft.replace(path)


async def resolve_seed(host: str, port: int, log: Logger) -> tuple[Address, ...]:
    """Return the addresses of a `--join` name; wait until it has some.

    An agent may start before the network of its machine, or before the other one has
    a name. Nothing else would dial that node where multicast does not reach it.
    """
    loop = asyncio.get_running_loop()
    has_warned = False
    while True:
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            if not has_warned:
                retry = f"it is looked up again every {SEED_RETRY_S:g} s"
                log.warning(
                    "cannot resolve --join", host=host, error=str(error), hint=retry
                )
            has_warned = True
            await asyncio.sleep(SEED_RETRY_S)
        else:
            return tuple(Address(str(entry[4][0]), port) for entry in found)


def assigned_name(asked: str, given: str | None) -> str:
    """Return the name that the dispatcher assigned, or `asked` if it was free."""
    if given is not None and given.startswith(f"{asked}-"):
        return given
    return asked
