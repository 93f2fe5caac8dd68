"""The node that a command uses.

The node is a URL with a token, or the socket of an agent on this machine. By default it
is the only running agent; an error lists them if there are several.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from octaskly.cli.output.render import note
from octaskly.client import Refused, Session
from octaskly.client.endpoint import Endpoint, resolve_endpoint


class CliContext(msgspec.Struct, frozen=True, kw_only=True):
    """The user's options that select a node."""

    node: str | None = None
    state_dir: Path | None = None
    url: str | None = None
    ca_file: Path | None = None
    environ: Mapping[str, str] = msgspec.field(default_factory=lambda: os.environ)

    def connect(
        self, *, is_silent: bool = False, waits_for_logs: bool = True
    ) -> Session:
        """Return a session with the node that these options select.

        The session prints on stderr why it waits, unless `is_silent` is set. Without
        `waits_for_logs`, it says at once that a task is not known yet.

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
        return Session(
            place,
            waits_for_logs=waits_for_logs,
            on_wait=None if is_silent else _print_waiting,
        )

    def agent_flags(self) -> dict[str, Any]:
        """Return the options that are settings of an agent, by field."""
        return {"name": self.node, "state_dir": self.state_dir}

    def socket_path(self) -> Path:
        """Return the socket of the local agent that these options select.

        Raises:
            Unreachable: no agent answers.
            SeveralAgents: several agents answer and none was chosen.
            PermissionDenied: this user may not use the agent's socket.
        """
        return self.local_endpoint().socket_path()

    def local_endpoint(self) -> Endpoint:
        """Return the agent of this machine that these options select."""
        return resolve_endpoint(
            node=self.node,
            state_dir=self.state_dir,
            environ=self.environ,
            is_local=True,
        )


def _print_waiting(refused: Refused) -> None:
    note(f"{refused.message}; waiting")
