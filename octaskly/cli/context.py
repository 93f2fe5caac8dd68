"""Which node a command talks to.

Either a URL with a token, or the local socket of an agent on this machine. Where
nobody chose, the only agent that answers is taken; several are listed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from octaskly.cli.output.render import cut, note
from octaskly.client import Refused, Session
from octaskly.client.endpoint import Endpoint, resolve_endpoint
from octaskly.client.errors import Invalid, NotFound
from octaskly.client.flows import api_calls
from octaskly.errors import MeshError
from octaskly.rest.client_types import Task, TaskPage

_ID = re.compile(r"task-[0-9]+(-[0-9a-f]{8}(\.[0-9]+)?(~[0-9]+)?)?")  #: made by a node
_NUMBER = re.compile(r"task-[0-9]+")  #: stands for the only task that has it
SUFFIX_MIN = 4  #: a shorter end of an id is more likely something else
SEARCHED_TASKS = 1000  #: newest tasks


class CliContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the user said about the node to use."""

    node: str | None = None
    state_dir: Path | None = None
    url: str | None = None
    ca_file: Path | None = None
    environ: Mapping[str, str] = msgspec.field(default_factory=lambda: os.environ)

    def connect(self, *, is_silent: bool = False) -> Session:
        """Return the way to the node that these options mean.

        It says on stderr what it waits for, unless it `is_silent`.

        Raises:
            ConfigError: an option is unusable.
        """
        place = resolve_endpoint(
            self.url,
            ca=self.ca_file,
            node=self.node,
            state_dir=self.state_dir,
            environ=self.environ,
        )
        return Session(place, on_wait=None if is_silent else _print_waiting)

    def agent_flags(self) -> dict[str, Any]:
        """Return what is said of the agent's own settings, by their fields."""
        return {"name": self.node, "state_dir": self.state_dir}

    def socket_path(self) -> Path:
        """Return the socket of the local agent that these options mean.

        Raises:
            Unreachable: no agent answers.
            SeveralAgents: several answer and none was chosen.
            PermissionDenied: the agent's socket is not for this user.
        """
        return self.local_endpoint().socket_path()

    def local_endpoint(self) -> Endpoint:
        """Return the agent of this machine that these options mean."""
        return resolve_endpoint(
            node=self.node,
            state_dir=self.state_dir,
            environ=self.environ,
            is_local=True,
        )


def _print_waiting(refused: Refused) -> None:
    note(f"{refused}; waiting")


def resolve_ref(client: Session, ref: str) -> str:
    """Return what the API understands of what people call a task.

    That is a full id, its number, `last`, the end of an id, or a name; the latter two
    are looked for among the newest tasks, and no others. A member of an array is that
    of the array, a dot and its number.

    Raises:
        MeshError: there is no last task, or what fits is not one task alone.
        NotFound: there is no such task.
    """
    if not ref:  # Of a variable that is not set.
        raise NotFound("Task not found", status=404, hint="an empty text names no task")
    if ref == "last":
        if newest := newest_tasks(client, 1):
            return newest[0].id
        raise MeshError("there is no task yet", hint="octaskly run -- echo hello")
    if _ID.fullmatch(ref):
        return ref
    full = pad_task_number(ref)
    for known in dict.fromkeys((full, ref)):
        with contextlib.suppress(NotFound, Invalid):  # A name need not do as an id.
            found = client.send_and_decode(api_calls.task(known), Task)
            return found.id if known == ref else known  # As people write it.
    if (
        task := _find_among_newest(client, ref) or _resolve_member(client, ref)
    ) is not None:
        return task
    raise NotFound(
        "Task not found", status=404, hint=f"no task is called {cut(full, 80)}"
    )


def resolve_id(client: Session, ref: str) -> str:
    """Return the whole id of what people call a task; raise as `resolve_ref` does."""
    known = resolve_ref(client, ref)
    if _NUMBER.fullmatch(known):
        return client.send_and_decode(api_calls.task(known), Task).id
    return known


def newest_tasks(client: Session, limit: int) -> list[Task]:
    """Return at most so many of the newest tasks, the latest first."""
    return client.send_and_decode(api_calls.newest(limit), TaskPage).tasks


def _find_among_newest(client: Session, ref: str) -> str | None:
    """Return the only task among the newest that ends so, or has this name."""
    found = [
        task.id
        for task in newest_tasks(client, SEARCHED_TASKS)
        if task.name == ref or (len(ref) >= SUFFIX_MIN and task.id.endswith(ref))
    ]
    if len(found) > 1:
        raise MeshError(
            f"{ref!r} may be any of {len(found)} tasks, the newest first:"
            f" {', '.join(found[:3])}",
            hint=f"octaskly show {found[0]}",
        )
    return found[0] if found else None


def _resolve_member(client: Session, ref: str) -> str | None:
    """Return the id of the member that `12.7` or `last.7` names."""
    array, _, number = ref.rpartition(".")
    if not array or not number.isdecimal():
        return None
    return f"{client.send_and_decode(api_calls.task(resolve_ref(client, array)), Task).id}.{number}"


def pad_task_number(ref: str) -> str:
    """Return `task-012` for `12`, anything else as it is."""
    is_number = ref.isascii() and ref.isdigit()
    return f"task-{ref.lstrip('0'):0>3}" if is_number else ref
