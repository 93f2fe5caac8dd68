"""`octaskly.AsyncClient`: the client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Self, TypeVar, Unpack

from octaskly.client.drivers.asyncio_driver import AsyncioDriver
from octaskly.client.drivers.flow_factory import make_request_flow
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


class AsyncClient:
    """`Client` for asyncio, with the same methods as coroutines and generators.

        async with octaskly.AsyncClient() as mesh:
            print((await mesh.run("hostname")).stdout)

    A client belongs to the event loop that uses it first; coroutines may share it.
    Cancelling `run` or `map` also cancels the tasks that they submitted.
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
        self._driver = AsyncioDriver(self._endpoint)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; submitted tasks keep running."""
        await self._driver.close()

    async def _run(self, flow: Flow[_T]) -> _T:
        return bound_to(self, await self._driver.run(flow))

    async def _iterate(self, flow: EmittingFlow[_T]) -> AsyncGenerator[_T]:
        async with aclosing(self._driver.iterate(flow)) as items:
            async for item in items:
                yield bound_to(self, item)

    # -- submitting ----------------------------------------------------------------

    async def submit(
        self,
        command: str,
        *,
        idempotency_key: str | None = None,
        durability: Durability | None = None,
        deadline_s: float | None = None,
        **fields: Unpack[TaskFields],
    ) -> Task:
        """As `Client.submit`."""
        flow = flows.submit(
            self._requests,
            command,
            fields,
            attach_files=take_inputs(fields, is_replicated=True).attach,
            key=idempotency_key,
            durability=durability,
            until=self._requests.deadline_after(deadline_s),
        )
        return await self._run(flow)

    async def submit_many(
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
        """As `Client.submit_many`."""
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
        return await self._run(flow)

    async def array(
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
        """As `Client.array`."""
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
        return await self._run(flow)

    async def run(
        self,
        command: str,
        *,
        check: bool = False,
        durability: Durability | None = None,
        deadline_s: float | None = None,
        **fields: Unpack[TaskFields],
    ) -> Task:
        """As `Client.run`."""
        flow = flows.run(
            self._requests,
            command,
            fields,
            attach_files=take_inputs(fields, lend_to=self._endpoint).attach,
            check=check,
            durability=durability,
            deadline=self._requests.deadline_after(deadline_s),
        )
        return await self._run(flow)

    def map(
        self,
        command: str,
        items: Iterable[object],
        *,
        ordered: bool = True,
        deadline_s: float | None = None,
        **fields: Unpack[TaskFields],
    ) -> AsyncGenerator[Task]:
        """As `Client.map`."""
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

    async def wait(self, task: str | Task, *, deadline_s: float | None = None) -> Task:
        """As `Client.wait`."""
        until = self._requests.deadline_after(deadline_s)
        return await self._run(flows.wait(self._requests, task, deadline=until))

    def as_ended(
        self, tasks: Iterable[str | Task], *, deadline_s: float | None = None
    ) -> AsyncGenerator[Task]:
        """As `Client.as_ended`."""
        until = self._requests.deadline_after(deadline_s)
        return self._iterate(streams.as_ended(self._requests, tasks, deadline=until))

    def results(
        self,
        array: str | Task,
        *,
        ordered: bool = True,
        deadline_s: float | None = None,
    ) -> AsyncGenerator[Task]:
        """As `Client.results`."""
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
    ) -> AsyncGenerator[Log]:
        """As `Client.logs`."""
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
    ) -> AsyncGenerator[Event]:
        """As `Client.events`."""
        flow = streams.events(
            self._requests,
            types=types,
            task=task,
            after=after,
            deadline=self._requests.deadline_after(deadline_s),
        )
        return self._iterate(flow)

    # -- one task ------------------------------------------------------------------

    async def task(self, task: str | Task) -> Task:
        """As `Client.task`."""
        return await self._run(flows.task(self._requests, task))

    def output(
        self, task: str | Task, path: str, *, deadline_s: float | None = None
    ) -> AsyncGenerator[bytes]:
        """As `Client.output`."""
        until = self._requests.deadline_after(deadline_s)
        return self._iterate(outputs.output(self._requests, task, path, deadline=until))

    async def fetch(
        self,
        task: str | Task,
        folder: str | Path = ".",
        *,
        sent: Mapping[str, bytes] | None = None,
        on_progress: OnProgress | None = None,
        deadline_s: float | None = None,
    ) -> Fetched:
        """As `Client.fetch`; files are written in threads."""
        fetching = await asyncio.to_thread(
            Fetching, await self.task(task), folder, sent=sent, on_progress=on_progress
        )
        try:
            until = self._requests.deadline_after(deadline_s)
            for flow in fetching.flows(self._requests, until):
                async with aclosing(self._iterate(flow)) as parts:
                    async for part in parts:
                        if not await asyncio.to_thread(fetching.take, part):
                            break
            return await asyncio.to_thread(fetching.finish)
        finally:
            fetching.close()

    async def cancel(self, task: str | Task, *, force: bool = False) -> Task:
        """As `Client.cancel`."""
        return await self._run(flows.cancel(self._requests, task, force=force))

    async def reprioritize(self, task: str | Task, priority: int) -> None:
        """As `Client.reprioritize`."""
        await self._run(flows.reprioritize(self._requests, task, priority))

    async def retry(self, task: str | Task) -> Task:
        """As `Client.retry`."""
        return await self._run(flows.retry(self._requests, task))

    async def explain(self, task: str | Task) -> Explanation:
        """As `Client.explain`."""
        return await self._run(queries.explain(self._requests, task))

    # -- the mesh ------------------------------------------------------------------

    def tasks(self, **task_filter: Unpack[TaskFilter]) -> AsyncGenerator[Task]:
        """As `Client.tasks`."""
        return self._iterate(queries.tasks(self._requests, task_filter))

    async def nodes(self) -> list[NodeInfo]:
        """As `Client.nodes`."""
        return await self._run(queries.nodes(self._requests))

    async def stats(self) -> Stats:
        """As `Client.stats`."""
        return await self._run(queries.stats(self._requests))
