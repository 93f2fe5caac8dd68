"""A stream that goes on where it was when its connection is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from octaskly.client.errors import NoAnswer, ReplyLost
from octaskly.client.flows.calls import Call, Reply
from octaskly.client.flows.request import Asker
from octaskly.client.flows.retry import Deadline
from octaskly.client.flows.sse import Event, Parser
from octaskly.client.flows.steps import Begin, Flow, Leave, Pause, Read
from octaskly.errors import OctasklyError

SILENCE_S_MAX: Final = 45.0  #: nodes show every 3 s that a stream lives


class Resuming:
    """Reads pieces of an answer, through lost connections.

    Args:
        asker: Asks the node.
        call: Returns the request for what has not come yet.
        until: How long to go on.
    """

    def __init__(self, asker: Asker, call: Callable[[], Call], until: Deadline) -> None:
        self._asker = asker
        self._call = call
        self._until = until
        self._failures = asker.failures()
        self.head: Reply | None = None  #: None: not open

    def piece(self) -> Flow[bytes | None]:
        """Return the next piece, b"" at the end; None: it begins anew behind the last.

        Raises:
            TimedOut: the deadline is over.
            OctasklyError: the node refuses, or stays away.
        """
        try:
            if self.head is None:
                # Refusals come here, as they do for any request.
                call = self._call()
                timeout_s = self._asker.reply_s(call, self._until)
                self.head = self._asker.checked((yield Begin(call, timeout_s)))
            data: bytes = yield Read(self._until.cap(SILENCE_S_MAX))
        except OctasklyError as error:
            yield from self.lost(error)
            return None
        if data:
            self._failures = self._asker.failures()
        return data

    def lost(self, error: OctasklyError) -> Flow[None]:
        """Leave the stream and wait before it is opened again; or raise `error`."""
        self.head = None
        yield Leave()
        if isinstance(error, NoAnswer):
            self._until.check("the stream did not end")
        pause_s = yield from self._asker.pause_s(self._failures, error)
        self._until.check("the stream did not end")
        yield Pause(self._until.cap(pause_s))


class Told:
    """The events of a stream, one by one; as `Resuming`.

    Args:
        asker: Asks the node.
        call: Returns the request for what follows, given the id of the last event.
        until: How long to go on.
    """

    def __init__(
        self,
        asker: Asker,
        call: Callable[[str], Call],
        until: Deadline,
        *,
        last_id: str = "",
    ) -> None:
        self._last_id = last_id
        self._pieces = Resuming(asker, lambda: call(self._last_id), until)
        self._parser = Parser()
        self._came: deque[Event] = deque()

    def event(self) -> Flow[Event]:
        """Return the next event; whoever has the last one leaves the stream."""
        while not self._came:
            data = yield from self._pieces.piece()
            try:
                self._came.extend(self._parser.feed(data or b""))
            except ReplyLost as error:
                yield from self._lost(error)
            if data == b"":
                yield from self._lost(ReplyLost("the stream ended before all was told"))
            elif data is None:
                self._parser = Parser()
        event = self._came.popleft()
        self._last_id = event.id or self._last_id
        return event

    def again(self) -> Flow[None]:
        """Ask for the stream again, since it told too little."""
        self._came.clear()
        yield from self._lost(ReplyLost("the stream did not tell all"))

    def _lost(self, error: ReplyLost) -> Flow[None]:
        self._parser = Parser()
        yield from self._pieces.lost(error)
