"""Many members of a mesh in one process: each is its link and what it says there.

They have certificates of the mesh and speak its protocol as workers do: they follow,
report their load, take attempts, hold them for a while and say how they ended.
No agent carries two hundred real ones beside it on a machine of two cores; to their
dispatcher, and to whoever looks at its page, these are the same.

usage: python -m tests.support.herd SECRET_FILE PEER_PORT COUNT WORK...

WORK is each field of `Work` as a number.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from octaskly.core.model.arrays import MemberRange, RangeMembers
from octaskly.core.model.ids import NO_EPOCH, AttemptId, Epoch, TaskId
from octaskly.core.model.nodes import LoadSample, NodeInfo, NodeState
from octaskly.core.model.settings import Limits
from octaskly.core.model.tasks import AttemptState, EndReason, Outcome, TaskSpec
from octaskly.core.protocol.messages import (
    Assign,
    AssignRanges,
    Claim,
    ClaimOk,
    Heartbeat,
    HeartbeatOk,
    Hello,
    HelloOk,
    Kill,
    Leave,
    MemberSuccess,
    Message,
    Probe,
    ProbeOk,
    RangeReport,
    RangeResults,
    Reattach,
    Report,
    Results,
)
from octaskly.mesh import wire
from octaskly.trust import MeshTls, NodeKey, load_secret
from tests.support.agents import Agent

MEMORY_MB = 8192
WAVE_S = 20.0  #: in which the load of a member goes up and down
AT_ONCE = 8  #: strangers are bounded
AGAIN_S = 1.0
Items = tuple[tuple[AttemptId, TaskSpec], ...]


class Work(NamedTuple):
    """How members treat their attempts."""

    slots: int = 2  #: of each member
    from_s: float = 4.0  #: the shortest attempt
    to_s: float = 7.0  #: the longest attempt
    ends_alone: bool = False
    """Each attempt lasts as long as it does; else those of one message end together."""
    fails: bool = False  #: each attempt fails; else each succeeds


FEW_SLOTS = Work()


class Member:
    """One of them."""

    def __init__(self, secret: Path, number: int, work: Work) -> None:
        self._trust = MeshTls(load_secret(secret), NodeKey.generate())
        self._number = number
        self._work = work
        self._epoch = NO_EPOCH
        self._held: set[AttemptId] = set()

    async def live(self, port: int, doors: asyncio.Semaphore) -> None:
        """Be a worker of the agent at this port, again and again if it hangs up."""
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(port, doors)
            await asyncio.sleep(AGAIN_S)

    async def _serve(self, port: int, doors: asyncio.Semaphore) -> None:
        async with doors:
            reader, self._writer = await asyncio.open_connection(
                *("127.0.0.1", port),
                ssl=self._trust.client_contexts()[0],
                server_hostname="",
            )
            hello = Hello(node=self._info(), epoch=NO_EPOCH, dispatcher=None)
            self._say(hello, HelloOk())
            greeting = await _frame(reader)
        self._hear(greeting)
        while True:
            self._hear(await _frame(reader))

    def _say(self, *messages: Message) -> None:
        self._writer.write(wire.encode(messages))

    def _hear(self, frame: bytes) -> None:
        for message in _messages(frame):
            self._answer(message)

    def _answer(self, message: Message) -> None:
        match message:
            case Claim(epoch):
                self._epoch = epoch
                self._say(
                    ClaimOk(epoch, ()), Reattach((), self._work.slots, NodeState.READY)
                )
            case Heartbeat(epoch, sent_s):
                self._say(self._health(epoch, sent_s))
            case Probe(about, sent_s):
                self._say(ProbeOk(about, sent_s, None, self._epoch))
            case Assign(_, items):
                self._begin(items)
            case AssignRanges(_, ranges):
                for each in ranges:
                    self._begin_range(each)
            case Kill(_, keys):
                self._kill(keys)
            case Leave(reason):
                sys.stderr.write(f"member {self._number} was left: {reason}\n")
            case _:
                pass  # Rosters, records: nothing that a worker answers.

    def _health(self, epoch: Epoch, sent_s: float) -> HeartbeatOk:
        wave = math.sin(2 * math.pi * (sent_s / WAVE_S + self._number / 16))
        load = LoadSample(50 + 45 * wave, 1 + wave, int(3000 + 2500 * wave), 60)
        slots = self._work.slots
        return HeartbeatOk(epoch, sent_s, NodeState.READY, slots, load)

    def _begin(self, items: Items) -> None:
        self._held.update(attempt for attempt, _ in items)
        for batch in zip(items) if self._work.ends_alone else (items,):
            took_s = random.uniform(self._work.from_s, self._work.to_s)
            asyncio.get_running_loop().call_later(took_s, self._end, batch, took_s)

    def _begin_range(self, members: MemberRange) -> None:
        if self._work.ends_alone or self._work.fails:
            self._begin(tuple(members.members()))
            return
        took_s = random.uniform(self._work.from_s, self._work.to_s)
        asyncio.get_running_loop().call_later(took_s, self._end_range, members, took_s)

    def _end_range(self, members: MemberRange, took_s: float) -> None:
        """Report the members together, as a worker reports successes."""
        part = members.array.array
        assert part is not None
        took_ms, ended_ms = int(took_s * 1000), int(time.time() * 1000)
        success = MemberSuccess(ended_ms - took_ms, ended_ms, took_ms)
        ended = RangeMembers(
            *(members.array.id, part.first, part.step, members.attempt),
            tuple(range(members.count)),
        )
        report = RangeReport(ended, (success,) * members.count)
        self._say(RangeResults((report,), self._work.slots))

    def _end(self, items: Items, took_s: float) -> None:
        ended_ms = int(time.time() * 1000)
        took_ms = int(took_s * 1000)
        outcome = Outcome(
            state=AttemptState.FAILED if self._work.fails else AttemptState.OK,
            reason=EndReason.EXIT,
            exit_code=int(self._work.fails),
            started_ms=ended_ms - took_ms,
            ended_ms=ended_ms,
            duration_ms=took_ms,
            stdout=b"done\n",
            stdout_bytes=5,
        )
        self._report(
            Report(spec.id, attempt, outcome)
            for attempt, spec in items
            if attempt in self._held
        )

    def _kill(self, keys: Iterable[tuple[TaskId, AttemptId]]) -> None:
        outcome = Outcome(AttemptState.CANCELLED, EndReason.CANCELLED)
        self._report(Report(task, attempt, outcome) for task, attempt in keys)

    def _report(self, some: Iterable[Report]) -> None:
        reports = tuple(some)
        self._held.difference_update(report.attempt for report in reports)
        if reports:
            self._say(Results(reports, self._work.slots))

    def _info(self) -> NodeInfo:
        return NodeInfo(
            id=self._trust.node_id,
            boot=f"{self._number:016x}",
            name=f"member-{self._number:03d}",
            slots=self._work.slots,
            version="0.1.0",
            peer_port=1,
            lan_port=1,
            memory_mb=MEMORY_MB,
            cpus=4,
            os="linux",
            arch="x86_64",
            labels=(("room", f"room-{self._number % 8}"),),
            electable=False,
        )


async def _frame(reader: asyncio.StreamReader) -> bytes:
    header = await reader.readexactly(wire.HEADER_BYTES)
    return header + await reader.readexactly(int.from_bytes(header))


@functools.lru_cache(maxsize=64)
def _messages(frame: bytes) -> list[Message]:
    """Decode a frame; most come to all members alike, as each roster does."""
    return wire.Decoder(Limits()).receive_data(frame)


@contextlib.contextmanager
def herd(agent: Agent, count: int, work: Work = FEW_SLOTS) -> Iterator[int]:
    """Give an agent so many members for the length of a block; yield their process."""
    secret, port = agent.state.parent / "mesh.key", agent.ready()["peer_port"]
    words = (secret, port, count, *map(float, work))
    process = subprocess.Popen([sys.executable, "-m", __spec__.name, *map(str, words)])
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


async def _serve(secret: Path, port: int, count: int, work: Work) -> None:
    doors = asyncio.Semaphore(AT_ONCE)
    async with asyncio.TaskGroup() as tasks:
        for number in range(1, count + 1):
            tasks.create_task(Member(secret, number, work).live(port, doors))


def _main(secret: str, port: str, count: str, *work: str) -> None:
    slots, from_s, to_s, ends_alone, fails = map(float, work)
    habits = Work(int(slots), from_s, to_s, bool(ends_alone), bool(fails))
    asyncio.run(_serve(Path(secret), int(port), int(count), habits))


if __name__ == "__main__":
    _main(*sys.argv[1:])
