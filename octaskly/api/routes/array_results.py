"""Route of array results: the output of all members in one stream.

A client that runs a command for many items gets all output in one request. Results of
ended members are read from the tables; later ends arrive through the event feed. The
server keeps only a position and one byte per member, so a slow reader costs no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from aiohttp import web

from octaskly.api.http import sse
from octaskly.api.http.handler_types import Access, Request, Route
from octaskly.api.routes import tasks
from octaskly.api.schemas import query, task_response
from octaskly.api.security import route_cost
from octaskly.core.change_feed import FeedGap, FeedItem, TaskEvent
from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import split_member_id
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import ArraySpec
from octaskly.ports.events import EndedMember, EventSubscription
from octaskly.ports.store import TaskParts

READ_MAX: Final = 64  #: members per read; fewer if they have long outputs


async def stream_results(request: Request) -> web.StreamResponse:
    """Send the result and output of each member of an array, until all have ended."""
    start, is_by_number = request.query.offset(), request.query.is_ordered_by_number()
    ref = query.task_ref(request.path_params["id"])
    found = await request.gateway.find_task(ref, TaskParts.BRIEF)
    array = tasks.require_array(found)

    async def send_all(stream: sse.EventStream) -> None:
        sender = _ResultSender(request, stream, array, start, is_by_number=is_by_number)
        async with request.gateway.subscribe(None) as listening:
            await sender.send_until_array_ended(listening)

    return await sse.serve_events(
        request, send_all, dispatcher=request.gateway.dispatcher()
    )


class _ResultSender:
    """Sends the results of one array.

    Args:
        request: The request.
        stream: The stream to write to.
        array: The array.
        start: Position of the first member to send.
        is_by_number: True if members are sent in order of their numbers.
    """

    def __init__(
        self,
        request: Request,
        stream: sse.EventStream,
        array: TaskRecord,
        start: int,
        *,
        is_by_number: bool,
    ) -> None:
        assert array.spec is not None
        assert array.spec.options is not None
        assert array.spec.options.array is not None
        self._request = request
        self._stream = stream
        self._array = array
        self._members: ArraySpec = array.spec.options.array
        self._start = self._next = start
        # A member that ends during the first read is also in the feed; send it once.
        self._is_sent = bytearray(self._members.count)
        self._is_by_number = is_by_number

    async def send_until_array_ended(self, listening: EventSubscription) -> None:
        """Send ended members, then members as they end, then the end of the array."""
        array = await self._read_array()
        await self._send_ended_from_next(is_over=array.state.is_final)
        while not array.state.is_final:
            news = await listening.next_items()
            if any(isinstance(each.content, FeedGap) for each in news):
                return  # Events are missing, so the client has to reconnect.
            # The end of an array follows those of its members in the feed.
            if any(_is_end_of(each, self._array.id) for each in news):
                array = await self._read_array()
            if self._is_by_number:
                await self._send_ended_from_next(is_over=array.state.is_final)
            else:
                await self._send_positions(sorted(set(self._ended_positions(news))))
        await self._stream.send(
            task_response.listed(array, self._request.gateway.node_names()), event="end"
        )

    async def _read_array(self) -> TaskRecord:
        return await self._request.gateway.find_task(self._array.id, TaskParts.BRIEF)

    def _ended_positions(self, news: Iterable[FeedItem]) -> Iterator[int]:
        """Yield the positions of members that ended, according to feed items."""
        for each in news:
            if (
                not isinstance(each.content, TaskEvent)
                or not each.content.state.is_final
            ):
                continue
            place = split_member_id(each.content.record.id)
            if place is not None and place[0] == self._array.id:
                position = self._members.position(place[1])
                if position is not None and position >= self._start:
                    yield position

    async def _send_ended_from_next(self, *, is_over: bool) -> None:
        """Send the ended members from the next position on.

        In order of numbers, a member is sent after all members before it. Once the
        array has ended, no member waits: one without an end never started.
        """
        is_read = True
        while is_read:
            async with self._request.quota.part():
                some = await self._read(self._next, self._members.count - 1)
                if self._is_by_number and not is_over:
                    some = tuple(m for n, m in enumerate(some, self._next) if m[0] == n)
                await self._send(some)
            is_read = bool(some)
            if some:
                self._next = some[-1][0] + 1

    async def _send_positions(self, positions: list[int]) -> None:
        """Send the members at these positions, which are sorted."""
        while positions:
            run = 1
            while (
                run < min(len(positions), READ_MAX)
                and positions[run] == positions[0] + run
            ):
                run += 1
            async with self._request.quota.part():
                some = await self._read(positions[0], positions[run - 1])
                await self._send(some)
            # Without any, the rest has not ended; a page of long outputs has not all.
            del positions[: some[-1][0] - positions[0] + 1 if some else run]

    async def _read(self, first: int, last: int) -> tuple[EndedMember, ...]:
        return await self._request.gateway.read_ended_members(
            self._array.id, first, last, READ_MAX
        )

    async def _send(self, some: Iterable[EndedMember]) -> None:
        for position, record in some:
            if self._is_sent[position]:
                continue
            self._is_sent[position] = True
            shown = task_response.result(
                record,
                self._request.gateway.node_names(),
                array=self._array.name,
                index=self._members.number(position),
                position=position,
            )
            await self._stream.send(shown, event="result")


def _is_end_of(news: FeedItem, task: TaskId) -> bool:
    event = news.content
    return (
        isinstance(event, TaskEvent)
        and event.record.id == task
        and event.state.is_final
    )


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/arrays/{id}/results",
        handler=stream_results,
        cost=route_cost.STREAM,
        access=Access.READ,
        query=("order", "offset"),
        responses={200: None},
        media_type=sse.CONTENT_TYPE,
        error_statuses=(404, 409),
    ),
)
