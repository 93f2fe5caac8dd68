"""What tasks write, while they run and after: as events, and as raw bytes."""

from __future__ import annotations

import re
from contextlib import aclosing

from aiohttp import web

from octaskly.api.http import sse
from octaskly.api.http.request import BYTES, Access, Call, Route
from octaskly.api.output.follower import Begins, Follower, Gap, Place, Step, Waits
from octaskly.api.output.task_status import Question, name_of, standing
from octaskly.api.schemas import query
from octaskly.core.model.ids import AttemptId, StreamId
from octaskly.ports.output import STREAMS, Piece

EVENT_BYTES_MAX = 64 << 10  #: of output in one event, before it becomes text
_CHARACTER_BYTES_MAX = 4
_FOLLOWS, _FOLLOWS_MASK = 0x80, 0xC0
_FIRSTS = ((0xC0, 0xE0, 2), (0xE0, 0xF0, 3), (0xF0, 0xF8, 4))
"""The first byte of a longer character, its mask, and how long it is: RFC 3629."""
TOTAL_HEADER = "Octaskly-Output-Bytes"
_ID = re.compile(r"(?:(\d{1,19})-(\d{1,19})-(\d{1,9}))?:(\d{1,16}):(\d{1,16})")


async def logs(call: Call) -> web.StreamResponse:
    """Send what a task writes as server-sent events."""
    question = _question(call)
    wanted, follow = call.query.streams(), call.query.flag("follow")
    start = call.query.offset()
    place = sse.resume_id(call, parse_id) or Place(None, [start, start])
    begin = await standing(call, question)
    follower = Follower(call, question, begin, place, wanted)

    async def send_all(stream: sse.EventStream) -> None:
        teller = _Teller(stream, place)
        async with aclosing(follower.steps(follow=follow)) as steps:
            async for step in steps:
                await teller.tell(step)
        await teller.end(follower)

    return await sse.serve(call, send_all)


async def stdout(call: Call) -> web.StreamResponse:
    """Send the bytes of a task's stdout."""
    return await _raw(call, 0)


async def stderr(call: Call) -> web.StreamResponse:
    """Send the bytes of a task's stderr."""
    return await _raw(call, 1)


def _question(call: Call) -> Question:
    ref = query.task_ref(call.named["id"])
    return Question(ref=ref, number=call.query.attempt())


def parse_id(text: str) -> Place:
    """Return the place that an event id names; raise ValueError if it is none."""
    match = _ID.fullmatch(text)
    if match is None:
        raise ValueError(text)
    term, stream, n, *offsets = match.groups()
    attempt = AttemptId(int(term), StreamId(int(stream)), int(n)) if n else None
    return Place(attempt, [int(offset) for offset in offsets])


class _Teller:
    """Turns steps into events.

    Characters that fall between two pieces are put together. Bytes that are no UTF-8
    are sent in base64, so nothing is lost on the way.
    """

    def __init__(self, stream: sse.EventStream, place: Place) -> None:
        self._stream = stream
        self._place = place
        self._sent = list(place.offsets)
        self._pending = [b"", b""]  #: a character that is not complete yet

    async def tell(self, step: Step) -> None:
        match step:
            case Piece():
                data = self._pending[step.stream] + step.data
                self._pending[step.stream] = await self._send_text(step.stream, data)
            case Gap():
                await self._flush()
                self._sent[step.stream] = step.end
                said: dict[str, object] = {
                    "stream": STREAMS[step.stream],
                    "offset": step.offset,
                    "bytes": step.end - step.offset,
                    "reason": step.why,
                }
                await self._send("gap", said)
            case Begins():
                await self._flush()
                self._sent[:] = self._place.offsets
                said = {
                    "attempt": step.attempt,
                    "node": step.node,
                    "previous": step.before,
                }
                await self._send("attempt", said)
            case Waits():
                await self._send("state", {"status": step.status})

    async def end(self, follower: Follower) -> None:
        """Say how things are now: the last event."""
        await self._flush()
        await self._send("end", follower.now.said)

    async def _send_text(self, stream: int, data: bytes) -> bytes:
        """Send whole characters; return what has come of the last one."""
        while data:
            part = data[:EVENT_BYTES_MAX]
            part = part[: len(part) - _begun_bytes(part)]
            if not part:
                break
            await self._send_bytes(stream, part)
            data = data[len(part) :]
        return data

    async def _send_bytes(self, stream: int, data: bytes) -> None:
        said: dict[str, object] = {"offset": self._sent[stream]}
        try:
            said["data"] = data.decode()
        except UnicodeDecodeError:
            said |= {"data": data, "encoding": "base64"}
        self._sent[stream] += len(data)
        await self._send(STREAMS[stream], said)

    async def _flush(self) -> None:
        for stream, data in enumerate(self._pending):
            if data:
                self._pending[stream] = b""
                await self._send_bytes(stream, data)

    async def _send(self, event: str, said: dict[str, object]) -> None:
        attempt = self._place.attempt
        out, err = self._sent
        event_id = f"{name_of(attempt) if attempt else ''}:{out}:{err}"
        await self._stream.send(said, event=event, event_id=event_id)


def _begun_bytes(data: bytes) -> int:
    """Return how many bytes at the end belong to a character that is not complete."""
    for back in range(1, min(_CHARACTER_BYTES_MAX, len(data) + 1)):
        byte = data[-back]
        if byte & _FOLLOWS_MASK != _FOLLOWS:
            lengths = (n for first, mask, n in _FIRSTS if byte & mask == first)
            return back if next(lengths, 0) > back else 0
    return 0


async def _raw(call: Call, stream: int) -> web.StreamResponse:
    """Send the bytes of one stream, as far as they are kept."""
    question = _question(call)
    follow = call.query.flag("follow")
    place = Place(None, [call.query.offset()] * len(STREAMS))
    begin = await standing(call, question)
    follower = Follower(call, question, begin, place, (stream == 0, stream == 1))

    async def send_all(answer: sse.EventStream) -> None:
        try:
            await _write_all(answer, follower, follow=follow)
        except BaseException:
            answer.cut()  # What came so far must not look like all.
            raise

    file = f"{question.ref}.{STREAMS[stream]}"
    headers = {
        "Content-Type": BYTES,
        # Bytes from a task are data, never a page of this origin.
        "Content-Disposition": f'attachment; filename="{file}"',
    }
    if begin.is_final and not begin.is_torn:
        headers[TOTAL_HEADER] = str(begin.sizes[stream])
    return await sse.relay(call, send_all, headers=headers)


async def _write_all(
    answer: sse.EventStream, follower: Follower, *, follow: bool
) -> None:
    attempts = 0
    async with aclosing(follower.steps(follow=follow)) as steps:
        async for step in steps:
            attempts += isinstance(step, Begins)
            if attempts > 1:
                raise ConnectionError("what was sent is void: the task runs again")
            if isinstance(step, Piece):
                await answer.write(step.data)


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/tasks/{id}/logs",
        perform=logs,
        access=Access.READ,
        is_local=True,
        query=("stream", "offset", "follow", "attempt"),
        answers={200: None},
        media=sse.CONTENT_TYPE,
        heeds=(sse.RESUME_HEADER,),
        refuses=(409,),
    ),
    *(
        Route(
            method="GET",
            path=f"/api/v1/tasks/{{id}}/{name}",
            perform=perform,
            access=Access.READ,
            is_local=True,
            query=("offset", "follow", "attempt"),
            answers={200: None},
            media=BYTES,
            tells=(TOTAL_HEADER,),
            refuses=(409,),
        )
        for name, perform in zip(STREAMS, (stdout, stderr), strict=True)
    ),
)
