"""`octaskly.Client`: the mesh for programs that wait."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Self, Unpack

from octaskly.client.asked import Asked, Durability
from octaskly.client.flows import Flows
from octaskly.client.patience import PATIENCE_S
from octaskly.client.pool import Pool
from octaskly.client.records import Draft, Task
from octaskly.client.targets import target


class Client:
    """The mesh, through one of its nodes.

        with octaskly.Client() as mesh:
            print(mesh.run("hostname").stdout)

    Without a place it takes the agent of this machine, by its socket, which needs no
    token. Several threads may share a client; a process that forked has it anew.

    Args:
        url: `https://NODE:3443`, or `http://localhost:3000`; else `OCTASKLY_URL`.
        token: What `octaskly token create` printed; else `OCTASKLY_TOKEN`.
        ca: File with the CA of the mesh, of `octaskly ca`; else `OCTASKLY_CA_FILE`.
        node: Name of an agent of this machine, where several run.
        state_dir: Its state folder, instead.
        patience_s: How long a mesh that does not answer, or has no dispatcher, is
            asked again before that is an error.

    Raises:
        ConfigError: a place that cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        ca: str | Path | None = None,
        node: str | None = None,
        state_dir: str | Path | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        place = target(url, token=token, ca=ca, node=node, state_dir=state_dir)
        self._flows = Flows(place.name, patience_s=patience_s)
        self._pool = Pool(place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; what was submitted goes on."""
        self._pool.close()

    def submit(
        self,
        command: str,
        *,
        idempotency_key: str | None = None,
        durability: Durability | None = None,
        deadline_s: float | None = None,
        **asked: Unpack[Asked],
    ) -> Task:
        """Submit a task and return it as it was accepted.

        It is one task, whatever happens on the way: the submission has a key, and is
        repeated by it. With a key of your own that holds across processes, too.

        Raises:
            Invalid: a value is not taken.
            TimedOut: no answer within `deadline_s`.
        """
        flow = self._flows.submit(
            command,
            asked,
            key=idempotency_key,
            durability=durability,
            deadline_s=deadline_s,
        )
        return self._pool.run(flow)

    def submit_many(
        self,
        drafts: Iterable[Draft | str],
        *,
        idempotency_key: str | None = None,
        durability: Durability | None = None,
        deadline_s: float | None = None,
    ) -> list[Task]:
        """Submit up to 10 000 tasks in one request, all or none; in their order."""
        flow = self._flows.submit_many(
            drafts, key=idempotency_key, durability=durability, deadline_s=deadline_s
        )
        return self._pool.run(flow)

    def run(
        self,
        command: str,
        *,
        check: bool = False,
        durability: Durability | None = None,
        deadline_s: float | None = None,
        **asked: Unpack[Asked],
    ) -> Task:
        """Run a command and return the ended task, as `subprocess.run` would.

        If this is left early, by `deadline_s` or Ctrl-C, the task is cancelled.

        Raises:
            TaskFailed: it did not complete, with `check`.
            TimedOut: it did not end within `deadline_s`.
        """
        flow = self._flows.run(
            command, asked, check=check, durability=durability, deadline_s=deadline_s
        )
        return self._pool.run(flow)

    def task(self, ref: str | Task) -> Task:
        """Return a task as it is now, with its output if it has ended."""
        return self._pool.run(self._flows.task(ref))

    def wait(self, ref: str | Task, *, deadline_s: float | None = None) -> Task:
        """Return a task once it has ended, however that is.

        Raises:
            TimedOut: not within `deadline_s`; it goes on.
        """
        return self._pool.run(self._flows.wait(ref, deadline_s=deadline_s))

    def cancel(self, ref: str | Task, *, force: bool = False) -> Task:
        """Cancel a task that is queued, with `force` also one that runs.

        Raises:
            Conflict: it runs.
            NotFound: there is none, or it has ended.
        """
        return self._pool.run(self._flows.cancel(ref, force=force))
