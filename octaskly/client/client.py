"""`octaskly.Client`: the blocking client."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self, TypeVar, Unpack

from octaskly.client.drivers.flow_factory import make_request_flow
from octaskly.client.drivers.thread_driver import ThreadDriver
from octaskly.client.endpoint import resolve_endpoint
from octaskly.client.fetching import Fetching, OnProgress
from octaskly.client.flows import arrays, outputs, queries, streams
from octaskly.client.flows import tasks as flows
from octaskly.client.flows.queries import TaskFilter
from octaskly.client.flows.retry import RETRY_TIMEOUT_S
from octaskly.client.flows.sse import Event
from octaskly.client.flows.steps import EmittingFlow, Flow
from octaskly.client.flows.streams import EventType, Log, Stream
from octaskly.client.flows.task_fields import (
    Durability,
    InputFields,
    Inputs,
    Paths,
    TaskFields,
)
from octaskly.client.inputs import take_inputs
from octaskly.files.unpacker import Fetched
from octaskly.rest.client_types import Draft, Task, bound_to
from octaskly.rest.mesh import NodeInfo, Stats
from octaskly.rest.tasks import Explanation

_T = TypeVar("_T")


class Client:
    """A blocking client of a mesh, connected to one of its nodes.

        with octaskly.Client() as mesh:
            print(mesh.run("hostname").stdout)

    The node is the first one named by the arguments, the environment or a settings
    file. Otherwise it is the agent of this machine; its socket needs no token. Threads
    may share a client, and a forked child may go on using it.

    Args:
        url: `https://NODE:3443` or `http://localhost:3000`; default `OCTASKLY_URL`.
        token: Token from `octaskly token create`; default `OCTASKLY_TOKEN`.
        ca: CA file of the mesh, from `octaskly ca`; default `OCTASKLY_CA_FILE`.
        node: Name of an agent on this machine, needed if several run.
        state_dir: State folder of that agent, instead of `node`.
        retry_timeout_s: How long a request is retried while the mesh does not answer,
            has no dispatcher, or asks for a pause (429, 503).

    Raises:
        ConfigError: the arguments or settings are unusable.
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
        self._endpoint = resolve_endpoint(
            url, token=token, ca=ca, node=node, state_dir=state_dir
        )
        self._requests = make_request_flow(
            self._endpoint.label, retry_timeout_s=retry_timeout_s
        )
        self._driver = ThreadDriver(self._endpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; submitted tasks keep running."""
        self._driver.close()

    def _run(self, flow: Flow[_T]) -> _T:
        return bound_to(self, self._driver.run(flow))

    def _iterate(self, flow: EmittingFlow[_T]) -> Generator[_T]:
        with closing(self._driver.iterate(flow)) as items:
            for item in items:
                yield bound_to(self, item)

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
        """Submit a task and return the accepted task.

        Retries never create a second task, because they carry the same idempotency
        key. Pass `idempotency_key` to extend this guarantee across processes.

        Raises:
            Invalid: a value is invalid.
            TimedOut: no response within `deadline_s`.
        """
        flow = flows.submit(
            self._requests,
            command,
            fields,
            attach_files=take_inputs(fields, is_replicated=True).attach,
            key=idempotency_key,
            durability=durability,
            until=self._requests.deadline_after(deadline_s),
        )
        return self._run(flow)

    def submit_many(
        self,
        drafts: Iterable[Draft | str],
        *,
        inputs: Inputs = (),
        includes_ignored: bool = False,
        outputs: Paths = (),
        idempotency_key: str | None = None,
        durability: Durability | None = None,
        deadline_s: float | None = None,
    ) -> list[Task]:
        """Submit up to 10 000 tasks in one request, all or none; return them in order.

        Args:
            drafts: The tasks, or their commands.
            inputs: Files and folders to send to each task, as for `submit`.
            includes_ignored: Also send what git ignores below folders.
            outputs: Outputs of each task, besides those that it declares.
            idempotency_key: As for `submit`.
            durability: As for `submit`.
            deadline_s: As for `submit`.

        Raises:
            Invalid: too many tasks, or an invalid value; nothing was accepted.
        """
        sent: InputFields = {"inputs": inputs, "includes_ignored": includes_ignored}
        flow = flows.submit_many(
            self._requests,
            drafts,
            attach_files=take_inputs(sent, is_replicated=True).attach_many,
            outputs=outputs,
            key=idempotency_key,
            durability=durability,
            deadline=self._requests.deadline_after(deadline_s),
        )
        return self._run(flow)

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
        """Submit one array; `members` is a range like `"1-1000"`, or the items.

        `{}` in the command is replaced by the number or item. See `results`.
        """
        flow = arrays.array(
            self._requests,
            command,
            fields,
            attach_files=take_inputs(fields, is_replicated=True).attach,
            members=members,
            max_fails=max_fails,
            key=idempotency_key,
            durability=durability,
            deadline=self._requests.deadline_after(deadline_s),
        )
        return self._run(flow)

    def run(
        self,
        command: str,
        *,
        check: bool = False,
        durability: Durability | None = None,
        deadline_s: float | None = None,
        **fields: Unpack[TaskFields],
    ) -> Task:
        """Run a command and return the ended task, like `subprocess.run`.

        The task is cancelled if the call is interrupted by `deadline_s` or Ctrl-C.

        Raises:
            TaskFailed: the task did not complete and `check` is set.
            TimedOut: the task did not end within `deadline_s`.
        """
        flow = flows.run(
            self._requests,
            command,
            fields,
            attach_files=take_inputs(fields, lend_to=self._endpoint).attach,
            check=check,
            durability=durability,
            deadline=self._requests.deadline_after(deadline_s),
        )
        return self._run(flow)

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

        `{}` in the command is replaced by the item, as one word; without `{}`, use the
        variable `OCTASKLY_ITEM`. Items are consumed lazily, at most 20 000 ahead, so
        their number is unlimited. The first `next()` submits the first tasks. Closing
        the generator early cancels the tasks that have not ended.

        Args:
            command: The shell command.
            items: Converted by `str()`; `Task.item` has the text.
            ordered: Yield results in the order of the items, else as they end.
            deadline_s: Time limit for all items together.
            fields: Fields of each task.
        """
        flow = arrays.map_(
            self._requests,
            command,
            items,
            fields,
            attach_files=take_inputs(fields, lend_to=self._endpoint).attach,
            ordered=ordered,
            deadline=self._requests.deadline_after(deadline_s),
        )
        return self._iterate(flow)

    # -- waiting -------------------------------------------------------------------

    def wait(self, task: str | Task, *, deadline_s: float | None = None) -> Task:
        """Wait until a task has ended, in any final state, and return it.

        Raises:
            TimedOut: the task did not end within `deadline_s`; it keeps running.
        """
        until = self._requests.deadline_after(deadline_s)
        return self._run(flows.wait(self._requests, task, deadline=until))

    def as_ended(
        self, tasks: Iterable[str | Task], *, deadline_s: float | None = None
    ) -> Generator[Task]:
        """Yield tasks as they end, over a single stream."""
        until = self._requests.deadline_after(deadline_s)
        return self._iterate(streams.as_ended(self._requests, tasks, deadline=until))

    def results(
        self,
        array: str | Task,
        *,
        ordered: bool = True,
        deadline_s: float | None = None,
    ) -> Generator[Task]:
        """Yield the members of an array with their output, in order or as they end.

        A member that waited when its array was cancelled has no result. One that was
        cancelled by itself has one without output.
        """
        until = self._requests.deadline_after(deadline_s)
        flow = arrays.results(self._requests, array, ordered=ordered, deadline=until)
        return self._iterate(flow)

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
        """Yield the output of a task as it is written, until the task has ended.

        Args:
            task: The task, or its id.
            follow: Wait for more output; else stop after the output so far.
            stream: `stdout`, `stderr` or `both`.
            attempt: Number of the only attempt to read.
            after: Id of the last `Log` already received.
            deadline_s: Seconds until `TimedOut` is raised.
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
        return self._iterate(flow)

    def events(
        self,
        *,
        types: Sequence[EventType] = ("task", "node"),
        task: str | Task | None = None,
        after: str = "",
        deadline_s: float | None = None,
    ) -> Generator[Event]:
        """Yield the changes of tasks and nodes, without end.

        An event `reset` means that events were missed: read the state again.

        Args:
            types: Kinds of events to yield.
            task: Yield only events of this task, or of this array and its members.
            after: Id of the last event already received.
            deadline_s: Seconds until `TimedOut` is raised.
        """
        flow = streams.events(
            self._requests,
            types=types,
            task=task,
            after=after,
            deadline=self._requests.deadline_after(deadline_s),
        )
        return self._iterate(flow)

    # -- one task ------------------------------------------------------------------

    def task(self, task: str | Task) -> Task:
        """Return the current state of a task, with its output if it has ended."""
        return self._run(flows.task(self._requests, task))

    def output(
        self, task: str | Task, path: str, *, deadline_s: float | None = None
    ) -> Generator[bytes]:
        """Yield the bytes of a file that the task declared in `outputs`, in pieces."""
        until = self._requests.deadline_after(deadline_s)
        return self._iterate(outputs.output(self._requests, task, path, deadline=until))

    def fetch(
        self,
        task: str | Task,
        folder: str | Path = ".",
        *,
        sent: Mapping[str, bytes] | None = None,
        on_progress: OnProgress | None = None,
        deadline_s: float | None = None,
    ) -> Fetched:
        """Place all outputs of an ended task in a folder; return what was fetched.

        Nothing in the folder is deleted, and nothing outside the declared outputs is
        written. An interrupted fetch resumes when it is repeated.

        Args:
            task: The task, or its id.
            folder: The folder; it is created.
            sent: SHA-256 of files that were sent, by their paths in the folder; by
                default, those that this machine has sent with the task from this
                folder. A file that has changed since is kept: see `Fetched.kept`.
            on_progress: Is called with the bytes that arrived and their total.
            deadline_s: Seconds until `TimedOut` is raised.

        Raises:
            Conflict: the task has not ended.
            FetchError: the outputs cannot be placed in the folder.
        """
        fetching = Fetching(self.task(task), folder, sent=sent, on_progress=on_progress)
        with closing(fetching):
            until = self._requests.deadline_after(deadline_s)
            fetching.receive(self._iterate, self._requests, until)
            return fetching.finish()

    def cancel(self, task: str | Task, *, force: bool = False) -> Task:
        """Cancel a queued task, with `force` also a running one.

        Raises:
            Conflict: the task is running.
            NotFound: the task does not exist, or has ended.
        """
        return self._run(flows.cancel(self._requests, task, force=force))

    def reprioritize(self, task: str | Task, priority: int) -> None:
        """Change the priority of a task, or of an array, that waits.

        Args:
            task: A task or an array.
            priority: From -50 to 50; a higher one runs first.

        Raises:
            Conflict: the task runs or has ended, or is a member of an array.
            Forbidden: the task is somebody else's.
        """
        self._run(flows.reprioritize(self._requests, task, priority))

    def retry(self, task: str | Task) -> Task:
        """Rerun an ended task, or the failed members of an array, as a new task.

        Raises:
            Conflict: the task has not ended.
        """
        return self._run(flows.retry(self._requests, task))

    def explain(self, task: str | Task) -> Explanation:
        """Return the reason for a task's state, and why each node cannot run it."""
        return self._run(queries.explain(self._requests, task))

    # -- the mesh ------------------------------------------------------------------

    def tasks(self, **task_filter: Unpack[TaskFilter]) -> Generator[Task]:
        """Yield tasks without their output, oldest first by default."""
        return self._iterate(queries.tasks(self._requests, task_filter))

    def nodes(self) -> list[NodeInfo]:
        """Return the members of the mesh, the dispatcher first."""
        return self._run(queries.nodes(self._requests))

    def stats(self) -> Stats:
        """Return statistics of the whole mesh."""
        return self._run(queries.stats(self._requests))
