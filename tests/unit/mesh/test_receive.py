"""Messages of one peer are handled in turns, so a long frame delays no other peer."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import pytest

from octaskly.core.log.facts import Entry, TaskCancelled
from octaskly.core.model.ids import StreamId, TaskId
from octaskly.core.model.settings import Limits
from octaskly.core.protocol.messages import Entries, HelloOk, Message, Pull, Results
from octaskly.core.protocol.visitor_rules import Direction, message_numbers
from octaskly.errors import RemoteProtocolError
from octaskly.mesh import wire
from octaskly.mesh.links.receive import (
    DECODE_S_MAX,
    MESSAGES_PER_TURN,
    TURN_S,
    UNMEASURED_BYTES,
    UNPERSISTED_ENTRIES_MAX,
    Receiver,
)
from octaskly.system.byte_rate import AHEAD_S_MAX

STREAM = StreamId(77)
TURNS_MAX = 10_000


class Peer(asyncio.Transport):
    """A connection whose reads can be paused, and a record of its messages."""

    def __init__(self, decoder: wire.Decoder | None = None) -> None:
        super().__init__()
        self.is_read = True
        self.takes: list[list[Message]] = []
        self.errors: list[str] = []
        self.is_over = False
        decoder = decoder or wire.Decoder(Limits())
        decoder.receive_data(wire.encode([HelloOk()]))
        self.progress = (0, 0)
        self.looks = 0  #: being written to disk
        self.intake = Receiver(decoder, self._take, self._break, self._look)
        self.intake.attach_transport(cast("asyncio.Transport", self))

    def pause_reading(self) -> None:
        """Record that reads are paused."""
        self.is_read = False

    def resume_reading(self) -> None:
        """Record that reads are resumed."""
        self.is_read = True

    @property
    def taken(self) -> list[Message]:
        """All received messages, in order."""
        return [message for some in self.takes for message in some]

    def finish(self) -> None:
        """Lose the connection."""
        self.intake.drain(self._end)

    async def turns(self) -> int:
        """Run the loop until all is handled; return the number of turns."""
        for turn in range(TURNS_MAX):
            if self.is_read:
                return turn
            await asyncio.sleep(0.001)
        raise AssertionError("it never reads again")

    async def looked(self) -> None:
        """Let it check the disk a few times and act on it."""
        until = self.looks + 4
        for _ in range(TURNS_MAX):
            if self.looks >= until:
                return
            await asyncio.sleep(0.001)
        raise AssertionError("it looks no more")

    def _look(self) -> tuple[int, int]:
        self.looks += 1
        return self.progress

    def _take(self, messages: Sequence[Message]) -> None:
        assert not self.is_over
        self.takes.append(list(messages))

    def _break(self, error: RemoteProtocolError) -> None:
        self.errors.append(str(error))
        self.intake.stop()
        self.is_read = True

    def _end(self) -> None:
        self.is_over = self.is_read = True


class Slow(wire.Decoder):
    """A decoder during whose first message after HELLO something happens."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__(Limits())
        self._meanwhile = meanwhile

    def decode_messages(self) -> Iterator[Message]:
        """Decode, and run the callback in between."""
        for message in super().decode_messages():
            if message != HelloOk():
                self._meanwhile()
            yield message


def _compute(cpu_s: float = 1.5 * DECODE_S_MAX) -> None:
    end_s = time.thread_time() + cpu_s
    while time.thread_time() < end_s:
        pass


async def test_a_peer_with_expensive_frames_is_paused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reads stop for twice the time above the free limit.

    A part of the log takes nearly the free limit: a little more must not delay it for
    long.
    """
    rests_s: list[float] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def noted(delay_s: float, *args: Any) -> asyncio.TimerHandle:
        rests_s.append(delay_s)
        return call_later(delay_s, *args)

    monkeypatch.setattr(loop, "call_later", noted)
    peer = Peer(Slow(_compute))
    large = Pull(tuple((StreamId(n), n) for n in range(1, UNMEASURED_BYTES)))

    peer.intake.receive_data(wire.encode([large]))

    assert peer.taken == [large]
    assert not peer.is_read
    (rest_s,) = rests_s
    assert DECODE_S_MAX <= rest_s < 2 * DECODE_S_MAX
    await peer.turns()


async def test_peer_with_a_rate_is_read_at_that_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A visitor may fill neither the loop of a member nor its network."""
    loop, now_s = asyncio.get_running_loop(), 100.0
    rests_s: list[float] = []
    monkeypatch.setattr(loop, "time", lambda: now_s)
    monkeypatch.setattr(loop, "call_later", lambda delay_s, _: rests_s.append(delay_s))
    peer, frame = Peer(), wire.encode([Pull(())])
    numbers = message_numbers(*Direction)
    rate = len(frame) / AHEAD_S_MAX  # It may be one frame ahead.
    peer.intake.restrict(numbers, hello_bytes=99, frame_bytes=99, bytes_per_s=rate)

    were_read: list[bool] = []
    for _ in range(2):
        peer.intake.receive_data(frame)
        were_read.append(peer.is_read)

    assert peer.taken == [Pull(()), Pull(())]
    assert were_read == [True, False]
    assert rests_s == [pytest.approx(AHEAD_S_MAX)]


async def test_waiting_for_a_core_pauses_no_peer() -> None:
    """On a busy machine a joining standby would pause after each part of the log."""
    # Like `time.sleep`, which no test lets the event loop do.
    peer = Peer(Slow(lambda: signal.sigtimedwait((), 2 * DECODE_S_MAX)))

    peer.intake.receive_data(wire.encode([Pull(())]))
    for _ in range(3):  # Turns in which other peers are handled; no time passes.
        await asyncio.sleep(0)

    assert peer.taken == [Pull(())]
    assert peer.is_read


async def test_a_frame_with_many_messages_takes_many_turns() -> None:
    """Each turn handles a few, and reads stay paused meanwhile."""
    peer = Peer()
    messages: list[Message] = [Results((), 1), Pull(())] * 2000

    peer.intake.receive_data(wire.encode(messages))

    assert not peer.is_read
    assert await peer.turns() > 1
    assert peer.taken == messages
    assert max(map(len, peer.takes)) <= MESSAGES_PER_TURN


async def test_a_turn_ends_with_its_time_also_late_in_a_frame() -> None:
    """The decoder has taken all bytes of a frame when its first message comes."""
    peer = Peer(Slow(partial(_compute, 1.1 * TURN_S)))
    large = Pull(tuple((StreamId(n), n) for n in range(1, UNMEASURED_BYTES)))
    messages: list[Message] = [large, *[Pull(())] * 5]

    peer.intake.receive_data(wire.encode(messages))
    await peer.turns()

    assert peer.takes == [[message] for message in messages]


async def test_small_frames_before_a_large_one_bound_its_turns_too() -> None:
    """The rest of a frame may arrive while the one before is handled."""
    small, last = [Pull(())] * (MESSAGES_PER_TURN + 1), [Pull(())] * 3
    costs_s = iter([0.0] * len(small) + [1.1 * TURN_S] * 4)
    peer = Peer(Slow(lambda: _compute(next(costs_s))))
    large = Pull(tuple((StreamId(n), n) for n in range(1, UNMEASURED_BYTES)))

    peer.intake.receive_data(wire.encode(small))
    peer.intake.receive_data(wire.encode([large, *last]))
    await peer.turns()

    assert peer.taken == [*small, large, *last]
    assert [len(take) for take in peer.takes[1:]] == [2, 1, 1, 1]


async def test_messages_before_a_lost_connection_are_handled() -> None:
    """Its end is reported after them, however many turns they take."""
    peer = Peer()
    messages: list[Message] = [Results((), n) for n in range(3000)]
    peer.intake.receive_data(wire.encode(messages))

    peer.finish()

    assert not peer.is_over
    await peer.turns()
    assert peer.taken == messages
    assert peer.is_over


async def test_nothing_is_handled_after_a_protocol_violation() -> None:
    """Earlier good frames are."""
    peer = Peer()
    good: list[Message] = [Results((), n) for n in range(1000)]
    bad = b"\x00\x00\x00\x01\x80"

    peer.intake.receive_data(wire.encode(good) + bad + wire.encode(good))

    await peer.turns()
    assert len(peer.errors) == 1
    assert peer.taken == good[: len(peer.taken)]
    assert len(good) - len(peer.taken) < MESSAGES_PER_TURN


async def test_an_aborted_link_delivers_nothing_more() -> None:
    """Its end is reported once, at once."""
    peer = Peer()
    peer.intake.receive_data(wire.encode([Results((), 1)] * 1000))
    peer.finish()
    taken = len(peer.taken)

    peer.intake.stop()

    assert peer.is_over
    await asyncio.sleep(0)
    assert len(peer.taken) == taken


async def test_long_parts_of_a_log_wait_until_the_previous_one_is_on_disk() -> None:
    """Until then each entry takes 2 kB here, and a frame may have many thousands."""
    peer = Peer()
    entries = tuple(
        Entry(STREAM, n, 1, TaskCancelled(TaskId("t"), "me"))
        for n in range(1, UNPERSISTED_ENTRIES_MAX + 2)
    )
    part = Entries(entries, (), False, ())
    peer.progress = (1, 0)

    peer.intake.receive_data(wire.encode([part] * 3))
    taken = []
    for number in (1, 2):
        await peer.looked()
        taken.append(len(peer.taken))
        peer.progress = (number + 1, number)
    await peer.looked()
    taken.append(len(peer.taken))
    peer.progress = (3, 3)
    await peer.turns()

    assert taken == [1, 2, 3]
    assert peer.taken == [part] * 3
