"""One task's output for one reader: across queue, attempts, nodes and dispatchers.

The node that the client is connected to asks the dispatcher where the task stands, and
fetches the bytes from the worker itself. Both may change; what the reader has got stays
where it was, by attempt and offset.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from octaskly.api.http.node_client import Unanswered
from octaskly.api.http.request import Call
from octaskly.api.output.task_status import Question, Standing, standing
from octaskly.api.output.transcripts import Starts, pieces
from octaskly.core.model.ids import AttemptId, NodeId, TaskId
from octaskly.errors import OutputNotFound
from octaskly.ports.output import STREAMS, Piece

WAIT_S = 20.0  #: for news of the dispatcher, then it is asked again
AGAIN_S = 0.5  #: until a worker is asked again that has not answered
ENDING_TRIES = 10  #: to hear of the end of what was cancelled, which may be lost


@dataclass(slots=True)
class Place:
    """How far a reader has got."""

    attempt: AttemptId | None = None
    offsets: list[int] = field(default_factory=lambda: [0, 0])


@dataclass(frozen=True, slots=True)
class Waits:
    """Nobody runs the task at the moment."""

    status: str


@dataclass(frozen=True, slots=True)
class Begins:
    """The output of an attempt begins, from its start on."""

    attempt: int
    node: str
    before: str | None  #: why the attempt before it does not count


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes of a stream that are not kept anywhere."""

    stream: int
    offset: int
    end: int
    why: str


Step = Waits | Begins | Piece | Gap

_CUT = "more was written than is kept"


class Follower:
    """Reads the output of one task.

    Args:
        call: The request.
        question: The task that is read.
        begin: Where it stands.
        place: How far the reader has got; it is kept up to date.
        wanted: Whether stdout and stderr are read.
    """

    def __init__(
        self,
        call: Call,
        question: Question,
        begin: Standing,
        place: Place,
        wanted: tuple[bool, bool],
    ) -> None:
        self._call = call
        self._question = question
        self.now = begin  #: where the task stands
        self._place = place
        self._wanted = [stream for stream in range(len(STREAMS)) if wanted[stream]]

    async def steps(self, *, follow: bool) -> AsyncGenerator[Step]:
        """Return what there is to read now, and with `follow` until the end."""
        said = ""
        tries_left = ENDING_TRIES
        while True:
            attempt = self.now.attempt_id
            if attempt is None:
                if not self.now.is_final and self.now.status != said:
                    said = self.now.status
                    yield Waits(said)
            elif attempt != self._place.attempt:
                yield self._begin(attempt)
            is_whole = False
            if attempt is not None:
                live = self._last() if self.now.is_final else self._live(follow=follow)
                async with aclosing(live) as found:
                    async for step in found:
                        if isinstance(step, Piece) and not step.data:
                            is_whole = True
                        else:
                            yield step
            if self.now.is_final or not follow or not tries_left:
                return
            tries_left -= self.now.is_ending
            said = said if attempt is None else ""
            # A result is there a moment after the last byte.
            await self._news(WAIT_S if is_whole or attempt is None else AGAIN_S)

    async def _news(self, wait_s: float) -> None:
        known = self.now.version
        question = replace(self._question, known=known, wait_s=wait_s)
        self.now = await standing(self._call, question)

    def _begin(self, attempt: AttemptId) -> Begins:
        if self._place.attempt is not None:
            self._place.offsets[:] = (0, 0)
        self._place.attempt = attempt
        return Begins(attempt.n, self.now.node_name, self.now.before)

    async def _live(self, *, follow: bool) -> AsyncGenerator[Step]:
        """Return what a running attempt writes, as long as its node says it."""
        try:
            async with aclosing(self._from_node(follow=follow)) as found:
                async for step in found:
                    yield step
        except (OutputNotFound, Unanswered):
            return  # Not there yet, or gone: the dispatcher will say.

    async def _last(self) -> AsyncGenerator[Step]:
        """Return the rest of an attempt that has ended."""
        now, offsets = self.now, self._place.offsets
        why = _CUT
        if now.is_torn or any(
            now.sizes[s] > max(now.logged[s], offsets[s]) for s in self._wanted
        ):
            try:
                async with aclosing(self._from_node(follow=False)) as found:
                    async for step in found:
                        yield step
            except OutputNotFound:
                why = f"{now.node_name} keeps no more of it"
            except Unanswered:
                why = f"{now.node_name}, which keeps the rest, cannot be reached"
        async for step in self._logged():
            yield step
        if self.now is not now:
            return
        for stream in self._wanted:
            if offsets[stream] < now.sizes[stream]:
                yield self._skip(stream, now.sizes[stream], why)

    async def _logged(self) -> AsyncGenerator[Step]:
        """Return what the log has of an ended attempt, beyond what was read.

        Another dispatcher may have to hear of the end first: then it counts as not yet
        come.
        """
        offsets = self._place.offsets
        if all(offsets[s] >= self.now.logged[s] for s in self._wanted):
            return
        question = replace(self._question, with_kept=True)
        with_kept = await standing(self._call, question)
        if with_kept.version != self.now.version:
            self.now = with_kept
            return
        kept = with_kept.kept or (b"", b"")
        for stream in self._wanted:
            offset = offsets[stream]
            if data := kept[stream][offset:]:
                offsets[stream] += len(data)
                yield Piece(stream, offset, data)

    async def _from_node(self, *, follow: bool) -> AsyncGenerator[Step]:
        offsets, attempt = self._place.offsets, self.now.attempt_id
        assert attempt is not None
        starts: Starts = (
            offsets[0] if 0 in self._wanted else None,
            offsets[1] if 1 in self._wanted else None,
        )
        found = pieces(
            self._call,
            NodeId(self.now.node),
            (TaskId(self.now.task), attempt),
            starts,
            follow=follow,
        )
        async with aclosing(found):
            async for piece in found:
                if piece.offset < offsets[piece.stream]:
                    raise Unanswered("the node sends what was not asked for")
                if piece.offset > offsets[piece.stream]:
                    yield self._skip(piece.stream, piece.offset, _CUT)
                offsets[piece.stream] = piece.end
                yield piece

    def _skip(self, stream: int, end: int, why: str) -> Gap:
        offset, self._place.offsets[stream] = self._place.offsets[stream], end
        return Gap(stream, offset, end, why)
