"""`octaskly.Client`: the mesh for programs that wait."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Self, Unpack

from octaskly.client.drivers.flow_factory import make_request_flow
from octaskly.client.drivers.thread_driver import ThreadDriver
from octaskly.client.endpoint import resolve_endpoint
from octaskly.client.flows import arrays, listing, streams
from octaskly.client.flows import tasks as flows
from octaskly.client.flows.listing import TaskFilter
from octaskly.client.flows.retry import RETRY_TIMEOUT_S
from octaskly.client.flows.sse import Event
from octaskly.client.flows.streams import EventType, Log, Stream
from octaskly.client.flows.task_fields import Durability, TaskFields
from octaskly.rest.client_types import Draft, Task
from octaskly.rest.mesh import NodeInfo, Stats
from octaskly.rest.tasks import Explanation


class Client:
    """The mesh, through one of its nodes.

        with octaskly.Client() as mesh:
            print(mesh.run("hostname").stdout)

    Without a place, and where no file of settings names one, it takes the agent of this
    machine, by its socket, which needs no token. Several threads may share a client; so
    may a process that forked.

    Args:
        url: `https://NODE:3443`, or `http://localhost:3000`; else `OCTASKLY_URL`.
        token: What `octaskly token create` printed; else `OCTASKLY_TOKEN`.
        ca: File with the CA of the mesh, of `octaskly ca`; else `OCTASKLY_CA_FILE`.
        node: Name of an agent of this machine, where several run.
        state_dir: Its state folder, instead.
        retry_timeout_s: How long a mesh that does not answer, has no dispatcher, or asks
            for a pause (429, 503) is asked again before that is an error.

    Raises:
        ConfigError: the place cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        ca: str | Path | None = None,
        node: str | None = None,
        state_dir: str | Path | None = None,
        retry_timeout_s: float = RETRY_TIMEOUT_S,
    ) -> None:
        place = resolve_endpoint(
            url, token=token, ca=ca, node=node, state_dir=state_dir
        )
        self._requests = make_request_flow(place.label, retry_timeout_s=retry_timeout_s)
        self._driver = ThreadDriver(place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; what was submitted goes on."""
        self._driver.close()

    # -- submitting ----------------------------------------------------------------

    def submit(
        self,
        command: str,
        *,
        idempotency_key: str | None = None,
        durability: Durability | None = None,
        deadline_s: float | None = None,
        **fields: Unpack[TaskFields],
    ) -> Task:
        """Submit a task and return it as it was accepted.

        It is one task, whatever happens on the way: the submission has a key, and is
        repeated by it. With a key of your own that holds across processes, too.

        Raises:
            Invalid: a value is not taken.
            TimedOut: no answer within `deadline_s`.
        """
        flow = flows.submit(
            self._requests,
            command,
            fields,
            key=idempotency_key,
            durability=durability,
            until=self._requests.deadline_after(deadline_s),
        )
        return self._driver.run(flow)

    def submit_many(
        self,
        drafts: Iterable[Draft | str],
        *,
        idempotency_key: str | None = None,
        durability: Durability | None = None,
        deadline_s: float | None = None,
    ) -> list[Task]:
        """Submit up to 10 000 tasks in one request, all or none; return them in order.

        Raises:
            Invalid: there are more, or a value is not taken; nothing was accepted.
        """
        flow = flows.submit_many(
            self._requests,
            drafts,
            key=idempotency_key,
            durability=durability,
            deadline=self._requests.deadline_after(deadline_s),
        )
        return self._driver.run(flow)

    def array(
        self,
        command: str,
        members: str | Iterable[object],
        *,
        max_fails: int | None = None,
        idempotency_key: str | None = None,
        durability: Durability | None = None,
        deadline_s: float | None = None,
        **fields: Unpack[TaskFields],
    ) -> Task:
        """Submit one array: `members` is a range such as `"1-1000"`, or the items.

        `{}` in the command stands for the number or item. See `results`.
        """
        flow = arrays.array(
            self._requests,
            command,
            fields,
            members=members,
            max_fails=max_fails,
            key=idempotency_key,
            durability=durability,
            deadline=self._requests.deadline_after(deadline_s),
        )
        return self._driver.run(flow)

    def run(
        self,
        command: str,
        *,
        check: bool = False,
        durability: Durability | None = None,
        deadline_s: float | None = None,
        **fields: Unpack[TaskFields],
    ) -> Task:
        """Run a command and return the ended task, as `subprocess.run` would.

        If this is left early, by `deadline_s` or Ctrl-C, the task is cancelled.

        Raises:
            TaskFailed: it did not complete, with `check`.
            TimedOut: it did not end within `deadline_s`.
        """
        flow = flows.run(
            self._requests,
            command,
            fields,
            check=check,
            durability=durability,
            deadline=self._requests.deadline_after(deadline_s),
        )
        return self._driver.run(flow)

    def map(
        self,
        command: str,
        items: Iterable[object],
        *,
        ordered: bool = True,
        deadline_s: float | None = None,
        **fields: Unpack[TaskFields],
    ) -> Generator[Task]:
        """Run a command for each item, and yield the ended tasks.

        `{}` in the command stands for the item, as one word; without it the item is in
        the variable `OCTASKLY_ITEM`. Items are taken as they are needed, up to 20 000
        ahead, so there may be any number. Nothing is submitted before the first result
        is asked for; if the generator is closed early, what has not ended is cancelled.

        Args:
            command: What is run.
            items: Texts, or what becomes one by `str()`; `item` of a task has it.
            ordered: Whether results come in the order of the items, or as they end.
            deadline_s: How long to go on.
            fields: What each task asks for.
        """
        flow = arrays.map_(
            self._requests,
            command,
            items,
            fields,
            ordered=ordered,
            deadline=self._requests.deadline_after(deadline_s),
        )
        return self._driver.iterate(flow)

    # -- waiting -------------------------------------------------------------------

    def wait(self, task: str | Task, *, deadline_s: float | None = None) -> Task:
        """Return a task once it has ended, however that is.

        Raises:
            TimedOut: not within `deadline_s`; it goes on.
        """
        until = self._requests.deadline_after(deadline_s)
        return self._driver.run(flows.wait(self._requests, task, deadline=until))

    def as_ended(
        self, tasks: Iterable[str | Task], *, deadline_s: float | None = None
    ) -> Generator[Task]:
        """Yield tasks as they end, over one stream however many they are."""
        until = self._requests.deadline_after(deadline_s)
        return self._driver.iterate(
            streams.as_ended(self._requests, tasks, deadline=until)
        )

    def results(
        self,
        array: str | Task,
        *,
        ordered: bool = True,
        deadline_s: float | None = None,
    ) -> Generator[Task]:
        """Yield the members of an array with their output, in order or as they end.

        One that was cancelled before it began has no result.
        """
        until = self._requests.deadline_after(deadline_s)
        flow = arrays.results(self._requests, array, ordered=ordered, deadline=until)
        return self._driver.iterate(flow)

    def logs(
        self,
        task: str | Task,
        *,
        follow: bool = True,
        stream: Stream = "both",
        attempt: int | None = None,
        after: str = "",
        deadline_s: float | None = None,
    ) -> Generator[Log]:
        """Yield what a task writes as it does, until it has ended.

        Args:
            task: The task, or its id.
            follow: Whether to wait for more; else what there is by now.
            stream: `stdout`, `stderr` or `both`.
            attempt: The number of an attempt that is read alone.
            after: Id of the last piece that is known.
            deadline_s: How long to go on.
        """
        flow = streams.logs(
            self._requests,
            task,
            follow=follow,
            stream=stream,
            attempt=attempt,
            after=after,
            deadline=self._requests.deadline_after(deadline_s),
        )
        return self._driver.iterate(flow)

    def events(
        self,
        *,
        types: Sequence[EventType] = ("task", "node"),
        task: str | Task | None = None,
        after: str = "",
        deadline_s: float | None = None,
    ) -> Generator[Event]:
        """Yield what happens to tasks and nodes, for ever.

        Nothing is missed, or an event `reset` says so: read again then.

        Args:
            types: Which kinds of events.
            task: The only task, or array with its members, to hear of.
            after: Id of the last event that is known.
            deadline_s: How long to go on.
        """
        flow = streams.events(
            self._requests,
            types=types,
            task=task,
            after=after,
            deadline=self._requests.deadline_after(deadline_s),
        )
        return self._driver.iterate(flow)

    # -- one task ------------------------------------------------------------------

    def task(self, task: str | Task) -> Task:
        """Return a task as it is now, with its output if it has ended."""
        return self._driver.run(flows.task(self._requests, task))

    def output(
        self, task: str | Task, path: str, *, deadline_s: float | None = None
    ) -> Generator[bytes]:
        """Yield the bytes of a file that the task declared in `outputs`, in pieces."""
        until = self._requests.deadline_after(deadline_s)
        return self._driver.iterate(
            streams.output(self._requests, task, path, deadline=until)
        )

    def cancel(self, task: str | Task, *, force: bool = False) -> Task:
        """Cancel a task that is queued, with `force` also one that runs.

        Raises:
            Conflict: it runs.
            NotFound: there is none, or it has ended.
        """
        return self._driver.run(flows.cancel(self._requests, task, force=force))

    def retry(self, task: str | Task) -> Task:
        """Run an ended task once more, or what failed of an array; return the new one.

        Raises:
            Conflict: it has not ended.
        """
        return self._driver.run(flows.retry(self._requests, task))

    def explain(self, task: str | Task) -> Explanation:
        """Return why a task is where it is, and what keeps it from each node."""
        return self._driver.run(listing.explain(self._requests, task))

    # -- the mesh ------------------------------------------------------------------

    def tasks(self, **task_filter: Unpack[TaskFilter]) -> Generator[Task]:
        """Yield tasks without their output, oldest first unless told."""
        return self._driver.iterate(listing.tasks(self._requests, task_filter))

    def nodes(self) -> list[NodeInfo]:
        """Return the members of the mesh, the dispatcher first."""
        return self._driver.run(listing.nodes(self._requests))

    def stats(self) -> Stats:
        """Return the whole mesh in numbers."""
        return self._driver.run(listing.stats(self._requests))
