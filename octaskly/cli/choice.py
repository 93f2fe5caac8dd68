"""Which node a command talks to.

Either a URL with a token, or the local socket of an agent on this machine. Where
nobody chose, the only agent that answers is taken; several are listed.
"""

from __future__ import annotations

import http
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octaskly.cli.render import note
from octaskly.client import Client, Refused, SeveralAgents, local_socket
from octaskly.errors import MeshError

SUFFIX_DIGITS = 8  #: in which an id ends that a node made
SUFFIX_MIN = 4  #: a shorter end of an id is more likely something else
LOOKED_AT = 1000  #: newest tasks


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
        try:
            return local_socket(self.environ, node=self.node, state_dir=self.state_dir)
        except SeveralAgents as error:
            error.hint = f"octaskly --node {error.names[0]} ..."
            raise


def _say_waiting(refused: Refused) -> None:
    note(f"{refused}; waiting")


def resolve_ref(client: Client, ref: str) -> str:
    """Return what the API understands of what people call a task.

    That is a full id, its number, `last`, the end of an id, or a name; the latter two
    are looked for among the newest tasks, and no others.

    Raises:
        MeshError: there is no last task, or what fits is not one task alone.
        Refused: there is no such task.
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
    except Refused as error:
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
