"""`octaskly leave`: a machine goes, and forgets the mesh and everything of it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from octaskly.cli.choice import Choice
from octaskly.cli.render import note
from octaskly.client import Checkup, Client, agents_here
from octaskly.errors import ConfigError, OctasklyError, WouldLeave

POLL_S = 0.2
FILES = ("log.db-wal", "log.db-shm", "log.db", "mesh.keyring", "mesh.id", "node.key")
FOLDERS = ("outputs", "transcripts", "scratch")


@click.command(epilog="Example: octaskly leave")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Leave, though tasks may be lost.")
@click.pass_obj
def leave(
    choice: Choice,
    yes: bool,  # noqa: FBT001
    force: bool,  # noqa: FBT001
) -> None:
    """Take this machine out of its mesh, and forget all that it knows of it.

    Its agent drains and stops; then its secret, log, outputs and identity go. Files in
    its worker directory stay. What the other nodes have is not touched.
    """
    if choice.url:
        raise ConfigError(
            "`leave` is for the agent of this machine", hint="octaskly leave"
        )
    with choice.client() as client:
        agent = client.checkup()
        lost = _only_here(client, agent.name)
        tasks = client.membership().tasks
    if lost and not force:
        raise WouldLeave(
            f"{agent.name} may have the only copy of tasks: {lost}",
            hint="octaskly leave --force    loses them",
        )
    if not yes and sys.stdin.isatty():
        click.confirm(
            f"{agent.name} forgets the mesh, with the {tasks} tasks in its log and the "
            f"outputs that lie in {agent.state_dir}. Go on?",
            abort=True,
        )
    become_owner(choice.socket())
    _stop(agent)
    shared = list(_sharing(choice, agent))
    _forget(agent, keeps_secret=bool(shared))
    note(f"✓ {agent.name} has left the mesh, and forgotten it")
    if shared:
        note(f"  {', '.join(shared)} goes on with the secret {agent.secret_file}")


def become_owner(socket: Path) -> None:
    """Let root take the rights of the agent that has this socket, for good.

    What to end and to delete is what that agent says, which may be anything.
    """
    owner = socket.lstat().st_uid
    if os.geteuid() != 0 or owner == 0:
        return
    group = pwd.getpwuid(owner).pw_gid
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(owner, owner, owner)


def _only_here(client: Client, name: str) -> str | None:
    """Return why tasks may be lost with this machine, None if none can be."""
    if not client.membership().tasks:
        return None
    try:
        nodes = msgspec.json.decode(client.request("GET", "/api/v1/nodes").body)
        counts = client.stats()["tasks"]
    except OctasklyError as error:
        return f"no dispatcher can be asked ({error})"
    roles = {node["name"]: node["role"] for node in nodes["nodes"]}
    unfinished = counts.get("queued", 0) + counts.get("running", 0)
    if not unfinished or roles.get(name) != "dispatcher" or nodes["replicas"] > 1:
        return None
    return f"{unfinished} wait or run, and no standby keeps copies"


def _stop(agent: Checkup) -> None:
    if agent.pid <= 1:
        raise ConfigError(
            f"{agent.name} does not say which process it is",
            hint="stop that agent, then delete its state folder and secret file",
        )
    note(f"{agent.name} ends what it runs, at most as long as --drain says")
    with contextlib.suppress(ProcessLookupError):
        os.kill(agent.pid, signal.SIGTERM)
    while Path(f"/proc/{agent.pid}").exists() and not _is_dead(agent.pid):
        time.sleep(POLL_S)


def _is_dead(pid: int) -> bool:
    """Whether it has ended, and only its parent has not looked yet."""
    with contextlib.suppress(OSError):
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        )
    return True


def _sharing(choice: Choice, agent: Checkup) -> Iterator[str]:
    """Yield the names of other agents of this machine that use the same secret file."""
    for name, socket in agents_here(choice.environ):
        with (
            contextlib.suppress(OctasklyError, OSError),
            Client.at_socket(socket, on_wait=None) as client,
        ):
            if client.checkup().secret_file == agent.secret_file:
                yield name


def _forget(agent: Checkup, *, keeps_secret: bool) -> None:
    from octaskly.store.database import Lock  # noqa: PLC0415

    state = Path(agent.state_dir)
    # An agent that a service has started again at once is not to lose its log.
    lock = Lock(state / "log.db")
    try:
        for name in FILES:
            (state / name).unlink(missing_ok=True)
        for name in FOLDERS:
            shutil.rmtree(state / name, ignore_errors=True)
        if not keeps_secret:
            Path(agent.secret_file).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot delete {error.filename}: {error.strerror}",
            hint=f"delete it by hand, and what else is left in {state}",
        ) from error
    finally:
        lock.release()
