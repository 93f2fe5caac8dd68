"""Client flows, played step by step without sockets or real time."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import octaskly
from octaskly.api.problems import CATCHING_UP
from octaskly.client.flows import arrays, files, outputs, rest_calls, streams, tasks
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.rest_calls import Call, Response
from octaskly.client.flows.resumable import REOPEN_S_MIN
from octaskly.client.flows.retry import CATCHING_UP_ERROR, Deadline
from octaskly.client.flows.sse import Event, EventParser
from octaskly.client.flows.steps import (
    CloseStream,
    Emit,
    OpenStream,
    ReadStream,
    SendRequest,
    Sleep,
)

LOST = octaskly.ReplyLost("lost")
AWAY = octaskly.Unreachable("away")
HEALTH = {"status": "healthy", "version": octaskly.__version__, "uptime_seconds": 1}


class Clock:
    """A clock that only pauses and waits advance."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def reply(body: object, status: int = 200, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, named, json.dumps(body).encode())


def refused(status: int, error: str, **headers: str) -> Response:
    return reply({"error": error, "status": status}, status, **headers)


TASK = reply({"id": "task-1", "status": "queued"}, 201)
ENDED = reply({"id": "task-1", "status": "completed"})
BUSY = refused(503, "No dispatcher is elected", retry_after="1")


class Slow(NamedTuple):
    """Data that a caller handles for a second."""

    data: bytes


class Play:
    """Performs a flow with prepared outcomes."""

    def __init__(
        self, *outcomes: Any, patience_s: float = 10.0, waits_for_logs: bool = True
    ) -> None:
        self.clock = Clock()
        self.asker = RequestFlow(
            "the node",
            retry_timeout_s=patience_s,
            waits_for_logs=waits_for_logs,
            clock=self.clock,
            random=lambda: 0.0,
            new_key=(f"key-{n}" for n in itertools.count(1)).__next__,
        )
        self.outcomes = list(outcomes)
        self.sent: list[Call] = []
        self.paused: list[float] = []
        self.emitted: list[Any] = []

    def until(self, deadline_s: float | None = None) -> Deadline:
        return self.asker.deadline_after(deadline_s)

    def run(self, flow: Any) -> Any:
        came: Any = None
        raised: BaseException | None = None
        while True:
            try:
                step = flow.send(came) if raised is None else flow.throw(raised)
            except StopIteration as end:
                return end.value
            came, raised = self._perform(step), None
            if isinstance(came, BaseException):
                came, raised = None, came

    def _perform(self, step: Any) -> Any:
        match step:
            case SendRequest(call, timeout_s) | OpenStream(call, timeout_s):
                self.sent.append(call)
                outcome = self.outcomes.pop(0)
                if outcome == "nothing":
                    self.clock.now_s += timeout_s
                    return octaskly.NoAnswer("silent")
                return outcome
            case ReadStream(timeout_s):
                outcome = self.outcomes.pop(0)
                if outcome == "nothing":
                    self.clock.now_s += timeout_s
                    return octaskly.NoAnswer("silent")
                if isinstance(outcome, Slow):
                    self.clock.now_s += 1.0
                    return outcome.data
                return outcome
            case Sleep(seconds):
                self.paused.append(seconds)
                self.clock.now_s += seconds
            case Emit(item):
                self.emitted.append(item)
            case _:
                assert step == CloseStream()
        return None


def submitted(play: Play) -> octaskly.Task:
    task: octaskly.Task = play.run(tasks.submit(play.asker, "true", {}))
    return task


def test_a_submission_is_repeated_with_its_key() -> None:
    """The node may have accepted it; the key makes the repetition harmless."""
    play = Play(LOST, BUSY, LOST, TASK)

    assert submitted(play).id == "task-1"
    assert [call.headers for call in play.sent] == [{"Idempotency-Key": "key-1"}] * 4
    assert len({call.body for call in play.sent}) == 1


def test_the_pause_that_the_node_requests_is_kept() -> None:
    """By 503 and by 429; the client neither shortens nor stretches it."""
    play = Play(BUSY, refused(429, "Too many requests", retry_after="7"), TASK)

    submitted(play)

    assert play.paused == [1.0, 7.0]


def test_a_pause_longer_than_the_patience_is_an_error_at_once() -> None:
    """A wait that must fail holds nobody up."""
    play = Play(refused(429, "Queue is full", retry_after="11"))

    with pytest.raises(octaskly.TooMany) as caught:
        submitted(play)
    assert (play.paused, caught.value.retry_after_s) == ([], 11.0)


def test_a_mesh_without_a_dispatcher_is_retried_within_the_patience() -> None:
    """Afterwards the error carries the node's answer."""
    play = Play(*[BUSY] * 11)

    with pytest.raises(octaskly.NoDispatcher):
        submitted(play)
    assert play.clock.now_s == 10.0


@pytest.mark.parametrize(("patience_s", "waited_s"), [(10.0, 60.0), (0.0, 0.0)])
def test_merging_logs_get_a_longer_patience(patience_s: float, waited_s: float) -> None:
    """A merge takes longer than an election; a patience of zero stays zero."""
    behind = refused(503, CATCHING_UP_ERROR, retry_after="2")
    play = Play(*[behind] * 31, patience_s=patience_s)

    with pytest.raises(octaskly.Refused):
        submitted(play)
    assert play.clock.now_s == waited_s


def test_a_command_about_one_task_does_not_wait_for_the_logs() -> None:
    """A user asks again; most unknown ids are mistyped."""
    behind = refused(503, CATCHING_UP_ERROR, retry_after="2")
    play = Play(behind, waits_for_logs=False)

    with pytest.raises(octaskly.Unavailable):
        play.run(tasks.cancel(play.asker, "task-1", force=False))
    assert play.clock.now_s == 0.0


def test_the_answer_of_a_merging_node_is_recognised() -> None:
    """The client recognises the text."""
    assert CATCHING_UP_ERROR == CATCHING_UP


def test_a_node_that_never_answered_is_not_retried() -> None:
    """The address is more likely wrong than the node starting."""
    play = Play(AWAY)

    with pytest.raises(octaskly.Unreachable):
        submitted(play)
    assert play.paused == []


def test_a_node_that_answered_before_is_retried() -> None:
    """It is probably restarting; the pauses grow."""
    play = Play(TASK, AWAY, AWAY, AWAY, TASK)
    submitted(play)

    submitted(play)

    assert play.paused == [0.05, 0.1, 0.2]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, octaskly.Invalid),
        (401, octaskly.Unauthorized),
        (403, octaskly.Forbidden),
        (404, octaskly.NotFound),
        (409, octaskly.Conflict),
        (413, octaskly.Invalid),
        (422, octaskly.Invalid),
        (500, octaskly.Refused),
        (503, octaskly.Unavailable),
        (507, octaskly.Unavailable),
    ],
)
def test_a_refusal_is_an_error_of_its_kind_and_not_repeated(
    status: int, kind: type[octaskly.Refused]
) -> None:
    """Without a requested pause another try is useless."""
    play = Play(refused(status, "No"))

    with pytest.raises(kind, match="No") as caught:
        submitted(play)
    assert type(caught.value) is kind
    assert len(play.sent) == 1


@pytest.mark.parametrize(
    "outcome",
    [
        refused(400, "Unknown field"),
        refused(404, "Not found"),
        reply({"id": 7}, 201),
        Response(404, {}, b"<html>"),
    ],
    ids=["field", "path", "form", "page"],
)
def test_a_version_difference_is_named(outcome: Response) -> None:
    """A newer client uses something that an older node lacks, or vice versa."""
    play = Play(outcome, reply(HEALTH | {"version": "0.0.1"}))

    with pytest.raises(octaskly.OctasklyError) as caught:
        submitted(play)
    gap = f"this client is Octaskly {octaskly.__version__}, the node 0.0.1"
    assert (caught.value.hint or "").splitlines()[-1] == gap


def test_nodes_of_the_same_version_are_not_blamed() -> None:
    """An unknown path is then a mistake of the caller."""
    play = Play(refused(404, "Not found"), reply(HEALTH))

    with pytest.raises(octaskly.NotFound) as caught:
        submitted(play)
    assert caught.value.hint is None


@pytest.mark.parametrize(
    ("place", "hint"),
    [("http://pi4:3443", "https://NODE:3443"), ("/run/octaskly/pi4.sock", "Ctrl-Z")],
)
def test_the_error_of_an_unreachable_node_depends_on_the_address(
    place: str, hint: str
) -> None:
    """A port may be wrong; a socket belongs to the local agent."""
    play = Play("nothing")
    play.asker.node_label = place

    with pytest.raises(octaskly.NoAnswer) as caught:
        submitted(play)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("call", "waited_s"),
    [
        (Call("GET", "/api/v1/nodes"), 11),
        (Call("GET", "/api/v1/tasks/1", extra_wait_s=60), 71),
        (Call("POST", "/api/v1/tasks", body=b"x" * 65_536), 11),
        (Call("POST", "/api/v1/tasks", body=b"x" * 65_537), 31),
        (Call("POST", "/api/v1/tokens", is_unrepeatable=True), 31),
    ],
    ids=["short", "long poll", "small", "large", "once"],
)
def test_a_node_that_never_answers_fails_after_one_timeout(
    call: Call, waited_s: float
) -> None:
    """It is stopped; a long poll still keeps its time, but only once."""
    play = Play("nothing")

    with pytest.raises(octaskly.NoAnswer):
        play.run(play.asker.send(call))
    assert play.clock.now_s == waited_s


def test_a_node_that_has_answered_may_be_slow() -> None:
    """A busy node is slow, and a connection may be lost silently."""
    play = Play(TASK, "nothing", TASK)
    submitted(play)

    submitted(play)

    assert play.clock.now_s == 31


def test_a_stream_of_a_silent_node_fails_as_soon() -> None:
    """Example: `logs -f` of a stopped agent."""
    play = Play("nothing")

    with pytest.raises(octaskly.NoAnswer):
        logged(play)
    assert play.clock.now_s == 11


def test_a_deadline_ends_the_wait_for_a_silent_node() -> None:
    """The error says that the time is over, as for any other node."""
    play = Play("nothing", "nothing", "nothing")

    with pytest.raises(octaskly.TimedOut, match="within 2 s"):
        play.run(tasks.submit(play.asker, "true", {}, until=play.until(2)))
    with pytest.raises(octaskly.TimedOut, match="within 2 s"):
        logged(play, deadline_s=2)


def test_a_deadline_ends_a_stream_that_always_has_data() -> None:
    """Its caller may be slower than the stream."""
    play = Play(HEAD, *[Slow(A)] * 9)

    with pytest.raises(octaskly.TimedOut, match="within 2 s"):
        logged(play, deadline_s=2)
    assert play.clock.now_s <= 3


def test_a_deadline_ends_the_sending_of_files() -> None:
    """Also if the node accepts each, and in the middle of a large one."""
    play = Play(*[ENDED] * 9)
    body = files.ContentBody(4, lambda: [b"ab", b"cd"])

    def upload() -> Any:
        while True:
            yield SendRequest(Call("POST", "/", body=body), 30.0)
            yield Sleep(1.5)

    with pytest.raises(octaskly.TimedOut, match="not sent within 2 s"):
        play.run(files.within(play.until(2), upload()))
    parts = iter(play.sent[0].body or ())

    assert (len(play.sent), play.clock.now_s) == (2, 2.0)
    with pytest.raises(octaskly.TimedOut):
        next(parts)


def test_a_deadline_ends_the_retries() -> None:
    """Whatever the patience; the error names the time."""
    play = Play(*[BUSY] * 11)

    with pytest.raises(octaskly.TimedOut, match="within 2 s"):
        play.run(tasks.submit(play.asker, "true", {}, until=play.until(2)))
    assert play.clock.now_s == 2.0


def test_a_long_wait_is_many_polls() -> None:
    """Each stays within a node's limit, and a lost one does not end the wait."""
    queued = reply({"id": "task-1", "status": "queued"})
    play = Play(queued, "nothing", queued, ENDED, patience_s=300)

    ended = play.run(tasks.wait(play.asker, "task-1", deadline=play.until()))

    assert ended.is_final
    assert {call.query["wait"] for call in play.sent} == {"60.000"}


def ran(play: Play) -> octaskly.Task:
    task: octaskly.Task = play.run(
        tasks.run(
            play.asker,
            "true",
            {},
            check=False,
            durability=None,
            deadline=play.until(),
        )
    )
    return task


SHORT = {"id": "task-1", "status": "completed", "stdout": "aGk=", "encoding": "base64"}


def test_a_short_run_is_one_request() -> None:
    """The response to the submission has the end and the output."""
    play = Play(reply(SHORT, 201))

    assert ran(play).stdout == "hi"
    assert [call.target for call in play.sent] == [
        "/api/v1/tasks?encoding=base64&wait=0.050"
    ]


@pytest.mark.parametrize(
    "first", [{"stdout": None}, {"stdout_truncated": True}, {"status": "running"}]
)
def test_a_run_waits_for_what_its_submission_lacks(first: dict[str, object]) -> None:
    """The task runs on, or its output is too long for the response."""
    play = Play(reply(SHORT | first, 201), reply(SHORT))

    assert ran(play).stdout == "hi"
    assert [call.method for call in play.sent] == ["POST", "GET"]


def test_leaving_a_run_cancels_its_task() -> None:
    """Ctrl-C and a cancelled asyncio task both raise exceptions."""
    play = Play(
        TASK, KeyboardInterrupt(), reply({"id": "task-1", "status": "cancelled"})
    )

    with pytest.raises(KeyboardInterrupt):
        ran(play)
    last = play.sent[-1]
    assert (last.method, last.target) == ("DELETE", "/api/v1/tasks/task-1?force=true")


@pytest.mark.parametrize(
    "left",
    [KeyboardInterrupt(), asyncio.CancelledError(), octaskly.TimedOut("late")],
    ids=["ctrl-c", "cancelled", "late"],
)
def test_leaving_a_run_before_its_answer_cancels_by_key(left: BaseException) -> None:
    """The task may be accepted and running.

    Its key finds it, or creates it as cancelled before it starts.
    """
    play = Play(left, TASK, reply({"id": "task-1", "status": "cancelled"}))

    with pytest.raises(type(left)):
        ran(play)
    first, again, last = play.sent
    assert again == first
    assert (last.method, last.target) == ("DELETE", "/api/v1/tasks/task-1?force=true")


def test_a_refused_submission_is_not_cancelled() -> None:
    """Nothing was accepted; another request could create a task."""
    play = Play(refused(507, "The disk is full"))

    with pytest.raises(octaskly.Unavailable):
        ran(play)
    assert len(play.sent) == 1


def test_an_interrupt_stays_an_interrupt_if_the_cancel_fails() -> None:
    """The caller leaves a few seconds later at most."""
    play = Play(TASK, KeyboardInterrupt(), *[BUSY] * 9, patience_s=3)

    with pytest.raises(KeyboardInterrupt):
        ran(play)
    assert play.clock.now_s <= tasks.CANCEL_S_MAX


def test_leaving_a_map_cancels_unanswered_arrays() -> None:
    """The second of two arrays has no answer yet: both are cancelled."""
    gone = reply({"id": "task-1", "status": "cancelled"})
    play = Play(TASK, KeyboardInterrupt(), TASK, gone, gone)
    flow = arrays.map_(
        play.asker,
        "true",
        ["x" * arrays.ITEMS_BYTES_MAX] * 2,
        {},
        ordered=True,
        deadline=play.until(),
    )

    with pytest.raises(KeyboardInterrupt):
        play.run(flow)
    methods = [call.method for call in play.sent]
    assert methods == ["POST", "POST", "POST", "DELETE", "DELETE"]
    assert play.sent[1] == play.sent[2]


def sse(kind: str, data: object, event_id: str = "") -> bytes:
    lines = [f"event: {kind}"] + [f"id: {event_id}"] * bool(event_id)
    return ("\n".join([*lines, f"data: {json.dumps(data)}"]) + "\n\n").encode()


HEAD = Response(200, {}, b"")
A, B = (sse("stdout", {"offset": n, "data": c}, f"1:{n}:0") for n, c in enumerate("ab"))
END = sse("end", {"id": "task-1", "status": "completed"}, "1:2:0")


def logged(play: Play, deadline_s: float | None = None) -> bytes:
    play.run(
        streams.logs(
            play.asker,
            "task-1",
            follow=True,
            stream="both",
            attempt=None,
            after="",
            deadline=play.until(deadline_s),
        )
    )
    return b"".join(log.data for log in play.emitted)


@pytest.mark.parametrize(
    "broken",
    [
        [LOST],
        [b""],
        [B[:9], LOST],
        [B[:9], b""],
        [b"event: x\ndata: {\n\n"],
        ["nothing"],
    ],
    ids=["lost", "ended", "cut", "cut off", "garbled", "silent"],
)
def test_a_stream_resumes_after_the_last_event(broken: list[Any]) -> None:
    """No event repeats and none is missing, whatever broke the stream."""
    play = Play(HEAD, A, *broken, HEAD, B + END, patience_s=60)

    assert logged(play) == b"ab"
    assert [call.headers for call in play.sent] == [{}, {"Last-Event-ID": "1:0:0"}]


def test_a_refused_stream_is_an_error() -> None:
    """Example: the token was revoked meanwhile."""
    play = Play(HEAD, A, LOST, refused(401, "Missing or invalid authentication token"))

    with pytest.raises(octaskly.Unauthorized):
        logged(play)


def test_a_node_with_too_many_streams_is_retried() -> None:
    """There is room once other streams have ended."""
    play = Play(refused(503, "Too many event streams", retry_after="1"), HEAD, A + END)

    assert logged(play) == b"a"
    assert play.paused == [1.0]


def content(start: int, end: int, size_bytes: int, etag: str = "one") -> Response:
    headers = {"etag": f'"{etag}"', "content-length": str(end - start)}
    if start:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size_bytes}"
    return Response(206 if start else 200, headers, b"")


@pytest.mark.parametrize("broken", [LOST, b"", "nothing"])
def test_an_output_resumes_where_it_broke(broken: Any) -> None:
    """The node sends only what is missing, of the same content."""
    play = Play(content(0, 5, 5), b"ab", broken, content(2, 5, 5), b"cde")

    play.run(outputs.output(play.asker, "task-1", "out", deadline=play.until()))

    assert b"".join(play.emitted) == b"abcde"
    rest = {"Range": "bytes=2-", "If-Range": '"one"'}
    assert [call.headers for call in play.sent] == [{}, rest]


def test_an_output_that_is_another_one_after_a_lost_connection_is_an_error() -> None:
    """Half of one file and half of another one would look like a whole file."""
    play = Play(content(0, 5, 5), b"ab", LOST, content(0, 5, 5, "two"), b"vwxyz")

    with pytest.raises(octaskly.ReplyLost, match="has changed since the connection"):
        play.run(outputs.output(play.asker, "task-1", "out", deadline=play.until()))

    assert play.emitted == [b"ab"]


def test_an_empty_output_ends_at_once() -> None:
    """One request, and no bytes."""
    play = Play(content(0, 0, 0), b"")

    play.run(outputs.output(play.asker, "task-1", "out", deadline=play.until()))

    assert (play.emitted, len(play.sent)) == ([], 1)


def test_waits_accept_every_name_of_a_task() -> None:
    """Events use the full id; each task comes once, with its output."""
    running = reply({"id": "task-1-aa", "status": "running"})
    ended = reply({"id": "task-1-aa", "status": "completed"})
    news = [
        sse("task", {"id": name, "status": status})
        for name, status in (
            ("x", "queued"),
            ("y", "failed"),
            ("task-1-aa", "completed"),
        )
    ]
    play = Play(HEAD, news[0], running, news[1] + news[2], ended)

    play.run(streams.as_ended(play.asker, ["task-1", "task-1"], deadline=play.until()))

    assert [task.id for task in play.emitted] == ["task-1-aa"]


def test_a_wait_for_no_tasks_sends_no_request() -> None:
    """An empty list has ended."""
    play = Play()

    play.run(streams.as_ended(play.asker, [], deadline=play.until()))

    assert play.sent == []


def test_a_refusal_is_reported_even_after_the_deadline() -> None:
    """The caller can correct a refusal, but not the late answer."""
    play = Play(refused(400, "Invalid command format"))
    until = play.until(1)
    play.clock.now_s = 2.0

    with pytest.raises(octaskly.Invalid):
        play.run(tasks.submit(play.asker, "true", {}, until=until))


def test_keepalives_keep_a_quiet_stream_open() -> None:
    """They are not events, but they break the silence."""
    play = Play(HEAD, *[b":\n\n"] * 50, A, END)

    assert logged(play) == b"a"
    assert len(play.sent) == 1


RESULTS = [
    sse("result", {"id": f"task-1.{n}", "position": n, "status": "completed"})
    for n in range(3)
]
ALL = sse("end", {"id": "task-1", "status": "completed", "array": {"completed": 3}})


def test_each_result_comes_once_though_the_stream_was_lost() -> None:
    """The client requests the stream again from the first missing result."""
    play = Play(
        HEAD, RESULTS[0] + RESULTS[2], LOST, HEAD, RESULTS[1] + RESULTS[2] + ALL
    )

    play.run(arrays.results(play.asker, "task-1", ordered=False, deadline=play.until()))

    assert [task.id for task in play.emitted] == ["task-1.0", "task-1.2", "task-1.1"]
    assert [call.query["offset"] for call in play.sent] == [0, 1]


def test_an_early_end_of_results_is_not_believed() -> None:
    """A node that has not received all ends is asked again."""
    play = Play(HEAD, RESULTS[0] + ALL, HEAD, RESULTS[1] + RESULTS[2] + ALL)

    play.run(arrays.results(play.asker, "task-1", ordered=True, deadline=play.until()))

    assert len(play.emitted) == 3


def test_a_stream_that_always_ends_early_is_not_reopened_in_a_busy_loop() -> None:
    """Example: a proxy that ends each response after its first bytes."""
    early = [HEAD, A, b""]
    play = Play(*early * 20, HEAD, A + END)

    logged(play)

    assert len(play.sent) == 21
    assert play.clock.now_s >= 20 * REOPEN_S_MIN


def test_a_stream_that_lasted_is_reopened_at_once() -> None:
    """The connection was lost; nothing would be gained by a pause."""
    play = Play(HEAD, Slow(A), LOST, HEAD, B + END)

    assert logged(play) == b"ab"
    assert play.paused == [0.0]


def test_a_map_has_at_most_two_arrays_in_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So the next one starts while the last members of the previous one run."""
    monkeypatch.setattr(arrays, "ITEMS_MAX", 1)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(3):
            taken.append(n)
            yield n

    one = sse("result", {"id": "task-1.0", "position": 0, "status": "completed"})
    one += sse("end", {"id": "t", "status": "completed", "array": {"completed": 1}})
    play = Play(TASK, TASK, HEAD, one, TASK, HEAD, one, HEAD, one)

    play.run(
        arrays.map_(
            play.asker,
            "f {}",
            items(),
            {},
            ordered=True,
            deadline=play.until(),
        )
    )

    order = ["POST", "POST", "GET", "POST", "GET", "GET"]
    assert [call.method for call in play.sent] == order
    assert [task.item for task in play.emitted] == ["0", "1", "2"]
    assert taken == [0, 1, 2]


def test_items_have_their_own_keys() -> None:
    """Two arrays of one map are two tasks, though each may be sent twice."""
    play = Play(LOST, TASK, TASK)
    submitted(play)
    submitted(play)

    keys = [call.headers["Idempotency-Key"] for call in play.sent]
    assert keys == ["key-1", "key-1", "key-2"]


events = st.lists(
    st.builds(
        Event,
        kind=st.sampled_from(["task", "node", "stdout"]),
        id=st.text("0123456789-:", max_size=8),
        data=st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=2),
    ),
    max_size=5,
)


@given(events, st.lists(st.integers(0, 200)))
def test_events_do_not_depend_on_chunk_boundaries(
    expected: list[Event], cuts: list[int]
) -> None:
    """The network may split bytes anywhere."""
    data = b":\n\n".join(sse(each.kind, each.data, each.id) for each in expected)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    parser = EventParser()

    came = [
        event
        for start, end in itertools.pairwise(places)
        for event in parser.feed(data[start:end])
    ]

    assert came == expected


@pytest.mark.parametrize("value", ["schl\u00fcssel\u2192", "a\nb", "\u2192"])
def test_a_key_or_event_id_that_http_has_not_is_refused(value: str) -> None:
    """By the error that the node would answer with, not by one of the library."""
    with pytest.raises(octaskly.Invalid, match="visible ASCII"):
        rest_calls.submission(b"{}", key=value, durability=None)
    with pytest.raises(octaskly.Invalid, match="visible ASCII"):
        rest_calls.open_stream("/api/v1/events", {}, value)
