"""Streams that resume at the same position after a lost connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from octaskly.client.errors import NoAnswer, ReplyLost
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.rest_calls import Call, Response
from octaskly.client.flows.retry import Deadline
from octaskly.client.flows.sse import Event, EventParser
from octaskly.client.flows.steps import CloseStream, Flow, OpenStream, ReadStream, Sleep
from octaskly.errors import OctasklyError

SILENCE_S_MAX: Final = 45.0  #: nodes send a keep-alive every 3 s
REOPEN_S_MIN: Final = 0.5  #: from one opening of a stream to the next


class ResumableBody:
    """Reads a response body in chunks, and reopens lost connections.

    Args:
        requests: Checks responses and decides about retries.
        make_call: Returns the request for the bytes not yet received.
        deadline: Limit for the whole body.
    """

    def __init__(
        self, requests: RequestFlow, make_call: Callable[[], Call], deadline: Deadline
    ) -> None:
        self._requests = requests
        self._make_call = make_call
        self._deadline = deadline
        self._retry_state = requests.new_retry_state()
        self._reopening = requests.deadline_after(0.0)  #: when the next stream may open
        self.response_head: Response | None = None  #: None while no stream is open

    def read_chunk(self) -> Flow[bytes | None]:
        """Return the next chunk, b"" at the end, None after a lost connection.

        After None, the next call reopens the stream after the last chunk.

        Raises:
            TimedOut: the deadline has passed.
            OctasklyError: the node refused, or retrying did not help.
        """
        try:
            if self.response_head is None:
                # The refusal of a stream has the same form as that of a request.
                call = self._make_call()
                timeout_s = self._requests.response_timeout_s(call, self._deadline)
                self.response_head = self._requests.check_response(
                    call, (yield OpenStream(call, timeout_s))
                )
                self._reopening = self._requests.deadline_after(REOPEN_S_MIN)
            self._deadline.check("the stream did not end")
            data: bytes = yield ReadStream(self._deadline.cap(SILENCE_S_MAX))
        except OctasklyError as error:
            yield from self.close_and_wait(error)
            return None
        if data:
            self._retry_state = self._requests.new_retry_state()
        return data

    def close_and_wait(self, error: OctasklyError) -> Flow[None]:
        """Close the stream and wait for the backoff; raise `error` if it is final."""
        self.response_head = None
        yield CloseStream()
        if isinstance(error, NoAnswer):
            self._deadline.check("the stream did not end")
        pause_s = yield from self._requests.retry_delay_s(self._retry_state, error)
        self._deadline.check("the stream did not end")
        # Any data resets the backoff, also that of streams that always end early.
        yield Sleep(self._deadline.cap(max(pause_s, self._reopening.left_s)))


class ResumableEvents:
    """The events of a stream, resumed after the last event id.

    Args:
        requests: Checks responses and decides about retries.
        make_call: Returns the request for the events after a given event id.
        deadline: Limit for the whole stream.
        last_id: Id of the last event already received.
    """

    def __init__(
        self,
        requests: RequestFlow,
        make_call: Callable[[str], Call],
        deadline: Deadline,
        *,
        last_id: str = "",
    ) -> None:
        self._last_id = last_id
        self._body = ResumableBody(requests, lambda: make_call(self._last_id), deadline)
        self._parser = EventParser()
        self._events: deque[Event] = deque()

    def next_event(self) -> Flow[Event]:
        """Return the next event; the caller closes the stream after the last one."""
        while not self._events:
            data = yield from self._body.read_chunk()
            try:
                self._events.extend(self._parser.feed(data or b""))
            except ReplyLost as error:
                yield from self._close_and_wait(error)
            if data == b"":
                yield from self._close_and_wait(
                    ReplyLost("the stream ended before its last event")
                )
            elif data is None:
                self._parser = EventParser()
        event = self._events.popleft()
        self._last_id = event.id or self._last_id
        return event

    def reopen(self) -> Flow[None]:
        """Reopen the stream, because it ended before all events arrived."""
        self._events.clear()
        yield from self._close_and_wait(
            ReplyLost("the stream ended with events missing")
        )

    def _close_and_wait(self, error: ReplyLost) -> Flow[None]:
        self._parser = EventParser()
        yield from self._body.close_and_wait(error)
