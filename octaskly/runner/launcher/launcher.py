"""The launcher: a small process that starts tasks and sees them end.

It is started by file, without site-packages and without the agent's modules, so that
it takes few milliseconds and megabytes. One thread, one epoll: orders come over the
control socket, SIGCHLD tells of what ended, pipes are watched only for tasks that live
longer than a moment. When the control socket ends, the agent is gone, and every tree
is killed.

What comes and goes on the control socket is told in `frames`.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    # Isolated mode leaves out the folders of msgpack and of this package; the agent
    # names them. The script's own folder would make its modules top-level.
    sys.path[:] = [*sys.argv[3:], *sys.path[1:]]

from octaskly.runner.launch_protocol import Inbox, decode_settings, pack, receive
from octaskly.runner.launcher.child import MEMORY_BYTES, Child, Order, Sink
from octaskly.runner.launcher.deadlines import NEVER, Timekeeper
from octaskly.runner.launcher.outbox import HOLD_WAITING_MIN, Outbox
from octaskly.runner.launcher.process_tracker import Kin
from octaskly.runner.launcher.sigchld import Exits
from octaskly.runner.launcher.slots import Slots
from octaskly.runner.launcher.spawn import Pad, Refused, refused_end
from octaskly.runner.processes.limits import fence_of
from octaskly.runner.processes.privileges import become
from octaskly.runner.processes.proc_tree import become_subreaper

WATCH_AFTER_S = 0.005  #: most tasks are over by then, and cost no epoll calls
OVER_MAX = 8  #: while an end is all that matters, so many are read together
WAIT_MAX_S = 0.05  #: an order that has not started by then is given back
OOM_SCORE = 500  #: as if half of the memory were theirs
BURY_AGAIN_S = 0.025
KILL_GIVE_UP_S = 5.0  #: a process in the kernel for so long is reported, not awaited


class Launcher:
    """Runs orders in a fixed number of slots."""

    def __init__(self, control: socket.socket, settings: dict[str, object]) -> None:
        self._control = control
        self._pad = Pad(
            workdir=str(settings["workdir"]),
            node=str(settings["node"]),
            output_bytes_max=int(str(settings["output_bytes_max"])),
            has_ctype=bool(settings["has_ctype"]),
        )
        os.umask(int(str(settings["umask"])))  # The agent's own is for its secrets.
        self._transcript_bytes_max = int(str(settings["transcript_bytes_max"]))
        self._inbox = Inbox()
        self._files: deque[int] = deque()  # came ahead of the orders they belong to
        self._over: list[Child] = []  # their slots are free, their pipes still open
        self._waiting: deque[Order] = deque()
        self._running: dict[int, Child] = {}  # by pid
        self._fresh: deque[Child] = deque()  # not watched yet, oldest first
        self._sinks: dict[int, Child] = {}  # by pipe descriptor, watched ones
        self._last_end_s = 0.0
        self._heard_s = 0.0  # all descriptors were looked at
        self._dying: list[Child] = []
        self._exits: deque[tuple[int, int, bytes]] = deque()
        self._has_children = False  #: that have not ended, or were left by tasks
        self._is_closing = False
        self._epoll = select.epoll()
        self._outbox = Outbox(control, self._epoll)
        self._signal = Exits()
        self._kin = Kin(self._running, self._collect)
        grace_s = float(str(settings["kill_grace_s"]))
        self._time = Timekeeper(self._running, self._kin, grace_s)
        folder = str(settings["cgroup"])
        self._slots = Slots(
            int(str(settings["first_slot"])),
            int(str(settings["slots"])),
            Path(folder) if folder else None,
        )

    def run(self) -> None:
        """Serve until the agent is gone, then end every tree."""
        self._control.settimeout(0)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            # Meant for the agent, if they reach all its processes; it ends us.
            signal.signal(number, signal.SIG_IGN)
        self._epoll.register(self._control, select.EPOLLIN)
        self._epoll.register(self._signal.fd, select.EPOLLIN)
        is_deaf = False
        while not (self._is_closing or self._outbox.is_broken):
            self._wait(is_deaf=is_deaf)
            self._reap()
            self._start_waiting()
            is_deaf = self._is_deaf()
            if is_deaf and len(self._over) < OVER_MAX:
                continue  # The rest is done for several at a time, in warm caches.
            self._drain_over()
            now_s = time.monotonic()
            self._keep_time(now_s)
            self._outbox.send(len(self._waiting), now_s)
        self._drain_over()
        self._end_all()
        self._outbox.send_last()

    def _wait(self, *, is_deaf: bool) -> None:
        if not is_deaf:
            for fd, _ in self._epoll.poll(self._pause_s()):
                self._handle(fd)
            self._heard_s = time.monotonic()
        self._has_children = self._collect()
        if is_deaf and not self._exits:
            self._signal.wait(WATCH_AFTER_S)
            self._has_children = self._collect()

    def _is_deaf(self) -> bool:
        """Whether an end is all that matters: slots are taken, and more is to do."""
        return (
            len(self._waiting) >= HOLD_WAITING_MIN
            and not (self._slots or self._sinks or self._outbox.is_blocked)
            and bool(self._fresh)
            and time.monotonic() - self._heard_s < WATCH_AFTER_S
        )

    def _handle(self, fd: int) -> None:
        if fd == self._signal.fd:
            self._signal.take()
        elif fd == self._control.fileno():
            self._receive()
        elif (child := self._sinks.get(fd)) is not None:
            sink = child.out if child.out.fd == fd else child.err
            sink.read()
            if not sink.is_open:
                del self._sinks[fd]
            elif not child.has_asked and len(sink.kept) > MEMORY_BYTES:
                self._ask_for_file(child)

    # -- the pool --------------------------------------------------------------

    def _receive(self) -> None:
        try:
            data, fds = receive(self._control)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self._files.extend(fds)
        if not data:
            self._is_closing = True
            return
        for name, *fields in self._inbox.feed(data):
            self._obey(name, fields)

    def _obey(self, name: object, fields: list[object]) -> None:
        match name:
            case "run":
                order = Order(*fields, since_s=time.monotonic())  # type: ignore[arg-type]
                order.fence = fence_of(order.asked, self._files)
                self._waiting.append(order)
            case "stop":
                self._stop(*fields)
            case "file":
                self._take_file(fields[0], self._files.popleft() if fields[1] else None)
            case "recall":
                self._give_back()
            case "freeze" | "thaw":
                self._time.freeze(time.monotonic(), is_frozen=name == "freeze")
            case _:
                assert name == "close"
                self._is_closing = True

    def _stop(self, key: object, verdict: object) -> None:
        for child in self._running.values():
            if child.key == key:
                self._time.end(child, str(verdict), time.monotonic())
        if any(order.key == key for order in self._waiting):
            self._waiting = deque(o for o in self._waiting if o.key != key)
            self._outbox.add("back", key)

    def _give_back(self) -> None:
        for order in self._waiting:
            self._outbox.add("back", order.key)
        self._waiting.clear()

    # -- output in files -------------------------------------------------------

    def _ask_for_file(self, child: Child) -> None:
        """Read no further until there is a file: the pipe fills, the task waits."""
        child.has_asked = True
        self._outbox.add("full", child.key)
        for sink in (child.out, child.err):
            if self._sinks.pop(sink.fd, None) is not None:
                sink.unwatch()

    def _take_file(self, key: object, fd: int | None) -> None:
        child = next((c for c in self._running.values() if c.key == key), None)
        if child is None or child.transcript is not None:
            if fd is not None:
                os.close(fd)
            return
        child.has_asked = True
        if fd is not None:
            child.record(fd, self._transcript_bytes_max)
        for sink in (child.out, child.err):
            if sink.is_open and sink.fd not in self._sinks:
                self._watch_sink(sink, child)

    # -- starting --------------------------------------------------------------

    def _start_waiting(self) -> None:
        while (
            self._waiting
            and not self._time.is_frozen
            and self._slots
            and not self._outbox.is_full
        ):
            self._start(self._waiting.popleft())

    def _start(self, order: Order) -> None:
        now_s, now_ms = time.monotonic(), int(time.time() * 1000)
        slot = self._slots.enter(order.fence)
        try:
            child = self._pad.spawn(order, slot, begin_s=now_s, begin_ms=now_ms)
        except Refused as refusal:
            self._slots.give(slot)
            if refusal.is_final:
                self._outbox.add(*refused_end(order, now_ms, refusal))
            else:
                self._outbox.add("lost", order.key, str(refusal))
            return
        finally:
            if slot.group is not None:
                self._slots.leave()
        self._running[child.pid] = child
        self._fresh.append(child)
        self._time.began(child)

    # -- ending ----------------------------------------------------------------

    def _collect(self) -> bool:
        """Reap what has ended; return whether any child is left."""
        ends = self._signal
        while (pid := ends.collect()) > 0:
            if pid in self._running:
                self._exits.append((pid, ends.status, ends.used))
            else:
                self._kin.forget(pid)
        return pid == 0

    def _reap(self) -> None:
        while self._exits:
            pid, status, usage = self._exits.popleft()
            child = self._running.pop(pid)
            now_s = self._last_end_s = time.monotonic()
            child.exit(status, usage, now_s=now_s, now_ms=int(time.time() * 1000))
            if not self._has_children or self._kin.end_rest(child):
                self._slots.give(child.slot)
                self._over.append(child)
            else:
                self._drain(child)
                self._dying.append(child)

    def _drain_over(self) -> None:
        """Take the last output of what is over; its slot has been given already."""
        for child in self._over:
            self._drain(child)
            self._outbox.add_end(child)
        self._over.clear()

    def _drain(self, child: Child) -> None:
        if self._sinks:
            for sink in (child.out, child.err):
                if sink.is_open:  # Else the number may be another task's by now.
                    self._sinks.pop(sink.fd, None)
        child.drain()

    def _end_all(self) -> None:
        give_up_s = time.monotonic() + KILL_GIVE_UP_S
        while self._collect() and time.monotonic() < give_up_s:
            self._kin.end_all()
            time.sleep(0.001)

    # -- time ------------------------------------------------------------------

    def _pause_s(self) -> float:
        if self._exits:
            return 0.0
        pause_s = min(self._outbox.pause_s, BURY_AGAIN_S if self._dying else NEVER)
        due_s = self._time.due_s
        if self._fresh:
            due_s = min(due_s, self._fresh[0].started_s + WATCH_AFTER_S)
        if self._waiting:
            due_s = min(due_s, time.monotonic() + WAIT_MAX_S / 2)
        if due_s < NEVER:
            pause_s = min(pause_s, max(0.0, due_s - time.monotonic()) + 0.0005)
        return pause_s if pause_s < NEVER else -1.0

    def _keep_time(self, now_s: float) -> None:
        while self._fresh and self._fresh[0].started_s + WATCH_AFTER_S <= now_s:
            self._watch(self._fresh.popleft())
        self._time.keep(now_s)
        if self._waiting:
            quiet_s = now_s - max(self._waiting[0].since_s, self._last_end_s)
            if quiet_s >= WAIT_MAX_S:
                self._give_back()
        if self._dying:
            self._bury(now_s)

    def _watch(self, child: Child) -> None:
        if self._running.get(child.pid) is not child:
            return
        self._outbox.add("alive", child.key, child.pid)
        for sink in (child.out, child.err):
            self._watch_sink(sink, child)

    def _watch_sink(self, sink: Sink, child: Child) -> None:
        sink.watch(self._epoll)
        self._sinks[sink.fd] = child

    def _bury(self, now_s: float) -> None:
        dying, self._dying = self._dying, []
        for child in dying:
            is_gone = self._kin.end_rest(child)
            if not is_gone and now_s < child.ended_s + KILL_GIVE_UP_S:
                self._dying.append(child)
                continue
            if not is_gone:
                child.detail = "processes of this task could not be killed"
            self._slots.give(child.slot, is_empty=is_gone)
            self._outbox.add_end(child)


def step_forward() -> None:
    """Let a machine that is out of memory end tasks, rather than their agent.

    They inherit the score, and each that matters is larger than this process.
    """
    score = Path("/proc/self/oom_score_adj")
    with suppress(OSError, ValueError):
        if int(score.read_text()) < OOM_SCORE:
            score.write_text(str(OOM_SCORE))


def allow_cores(bytes_max: int) -> None:
    """Give tasks the bound on core files that the agent has taken from itself."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (bytes_max, hard))


def main() -> None:
    """Run as `launcher.py CONTROL_FD SETTINGS FOLDER...`; see `frames` for settings."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    # What the agent inherited from its own parent is nothing for tasks either.
    names = os.listdir("/proc/self/fd")  # noqa: PTH208 - names are enough
    os.closerange(control.fileno() + 1, max(map(int, names)) + 1)
    become_subreaper()
    step_forward()
    settings = decode_settings(sys.argv[2])
    launcher = Launcher(control, settings)
    if settings["core_bytes"] is not None:
        allow_cores(int(str(settings["core_bytes"])))
    if settings["user"]:  # Behind what only the agent's own user may open.
        become(*settings["user"])
    # Next to no cycles are made, so it is enough to look for them now and then.
    gc.freeze()
    gc.set_threshold(20_000)
    # Ahead of all orders: no task is to blame for a launcher that dies unheard.
    with suppress(OSError):  # The agent is gone, as `run` will find.
        control.sendall(pack([["ready", 0]]))
    launcher.run()


if __name__ == "__main__":
    main()
