"""Deleting what this node keeps of forgotten tasks: captured outputs and output files.

Only the dispatcher can tell that a task is forgotten and not just unknown somewhere. So
each node asks it from time to time, and soon after an operator's request to forget.
Nothing is deleted without its answer.

After such a request, input files that no unfinished task names may be deleted when
space is needed, too: they would stay for an hour after their last use. The dispatcher
first has the others kept, and each standby keeps its own copies of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from octaskly.errors import OctasklyError
from octaskly.ports.files import KEPT_OUTPUTS_MAX, KeptOutput
from octaskly.ports.gateway import DispatcherView
from octaskly.rest.tasks import ForgottenIndices
from octaskly.runner.blobs.blob_fetcher import BlobFetcher
from octaskly.runner.blobs.holder_connection import (
    Holder,
    HolderBusy,
    HolderUnreachable,
)
from octaskly.runner.output.output_archive import OutputArchive
from octaskly.runner.pool.output_recorder import CLEANUP_PERIOD_S

ASK_PATH: Final = "/internal/v1/forgotten-outputs"
WAKE_PATH: Final = "/internal/v1/forgotten-outputs/wake"
TOLD_AT_ONCE: Final = 2  #: nodes; each occupies a thread
ANSWER_S_MAX: Final = 30.0  #: a dispatcher may wait for heartbeats
PAUSE_S: Final = 1.0  #: at least so long from one look to the next
RETRY_S: Final = 10.0  #: until the next look after one without an answer

FindForgotten = Callable[[Sequence[KeptOutput]], Awaitable[tuple[Sequence[int], int]]]
"""See `Gateway.find_forgotten`."""
_FAILURES: Final = (
    OctasklyError,
    HolderUnreachable,
    HolderBusy,
    msgspec.MsgspecError,
    OSError,
)


class ForgottenOutputs:
    """Deletes outputs of forgotten tasks.

    Args:
        archive: Keeps outputs, and copies of other nodes' outputs.
        fetcher: Connects to other nodes.
        dispatcher: Returns the dispatcher, if one is known.
        other_nodes: Returns the other live nodes.
        find_forgotten: Answers if this node is dispatcher.
        keep_inputs: Has the inputs of unfinished tasks kept, as dispatcher, or keeps
            its copies, as standby; returns False if some are perhaps not kept.
    """

    def __init__(
        self,
        archive: OutputArchive,
        fetcher: BlobFetcher,
        *,
        dispatcher: Callable[[], DispatcherView | None],
        other_nodes: Callable[[], Sequence[Holder]],
        find_forgotten: FindForgotten,
        keep_inputs: Callable[[], Awaitable[bool]],
    ) -> None:
        self._archive, self._fetcher = archive, fetcher
        self._dispatcher, self._other_nodes = dispatcher, other_nodes
        self._find_forgotten, self._keep_inputs = find_forgotten, keep_inputs
        self._woken = asyncio.Event()
        self._has_news = False  #: for other nodes
        self._may_release_inputs = False
        self._telling = asyncio.Semaphore(TOLD_AT_ONCE)

    def wake(self, *, may_release_inputs: bool = False) -> None:
        """Look soon: tasks were forgotten.

        With `may_release_inputs`, those that unfinished tasks name were used just now.
        """
        self._may_release_inputs |= may_release_inputs
        self._woken.set()

    def announce(self) -> None:
        """Have all nodes look soon."""
        self._has_news = True
        self._woken.set()

    async def run(self) -> None:
        """Look every `CLEANUP_PERIOD_S`, and when woken, until cancelled."""
        pause_s = CLEANUP_PERIOD_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._woken.wait()
            self._woken.clear()
            has_news, self._has_news = self._has_news, False
            is_releasing, self._may_release_inputs = self._may_release_inputs, False
            if has_news or is_releasing:
                is_releasing = await self._keep_inputs()
            async with asyncio.TaskGroup() as group:
                for node in self._other_nodes() if has_news else ():
                    group.create_task(
                        self._wake_node(node, may_release_inputs=is_releasing)
                    )
                look = group.create_task(self.delete_forgotten())
                if is_releasing:
                    await asyncio.to_thread(self._fetcher.blob_store.release_unused)
            pause_s = CLEANUP_PERIOD_S if look.result() else RETRY_S
            await asyncio.sleep(PAUSE_S)

    async def delete_forgotten(self) -> bool:
        """Delete what the dispatcher says is forgotten; return False without answer.

        For example, while a node is missing that may know more tasks.
        """
        kept = await asyncio.to_thread(self._archive.list_ended)
        if not kept:
            return True
        with suppress(*_FAILURES):
            answer = await self._ask([])
            asked = [each for each in kept if each.ended_ms <= answer.before_ms]
            for start in range(0, len(asked), KEPT_OUTPUTS_MAX):
                some = asked[start : start + KEPT_OUTPUTS_MAX]
                answer = await self._ask(some)
                gone = [some[index] for index in answer.forgotten]
                await asyncio.to_thread(self._archive.delete_ended, gone)
            return True
        return False

    async def _ask(self, kept: Sequence[KeptOutput]) -> ForgottenIndices:
        """Ask the dispatcher.

        Raises:
            OctasklyError, HolderUnreachable, HolderBusy, MsgspecError: it does not say.
        """
        dispatcher = self._dispatcher()
        if dispatcher is None:
            raise HolderUnreachable("no dispatcher is known")
        if dispatcher.is_self:
            indices, before_ms = await self._find_forgotten(kept)
            return ForgottenIndices(forgotten=list(indices), before_ms=before_ms)
        holder = Holder(dispatcher.node, dispatcher.lan_urls)
        body = {"kept": kept}
        reply = await self._post(holder, ASK_PATH, body)
        answer = msgspec.convert(reply, ForgottenIndices)
        if any(not 0 <= index < len(kept) for index in answer.forgotten):
            raise HolderUnreachable("it named outputs that were not asked for")
        return answer

    async def _wake_node(self, node: Holder, *, may_release_inputs: bool) -> None:
        body = {"may_release_inputs": may_release_inputs}
        async with self._telling:
            with suppress(*_FAILURES):  # It looks later by itself.
                await self._post(node, WAKE_PATH, body)

    async def _post(self, node: Holder, path: str, body: object) -> Any:
        def post() -> Any:
            with self._fetcher.connections.connect_to(node) as connection:
                return connection.post_json(path, body, timeout_s=ANSWER_S_MAX)

        threads = self._fetcher.threads
        return await asyncio.get_running_loop().run_in_executor(threads, post)
