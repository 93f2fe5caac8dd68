"""The launcher: a small process that starts tasks and reaps them.

The agent starts it by file, without site-packages and without the agent's modules, so
that it starts within milliseconds and needs few megabytes. It has one thread and one
epoll: start orders arrive on the control socket, and SIGCHLD reports ended processes.
Output pipes are registered only for tasks that run longer than `WATCH_AFTER_S`. When
the control socket closes, the agent is gone, and the launcher kills every process tree.

`launch_protocol` describes the messages on the control socket.
"""

from __future__ import annotations

import errno
import gc
import mmap
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
    # Isolated mode omits the folders of msgpack and of this package, so the agent
    # passes them. The script's own folder is dropped: it would make its modules
    # top-level.
    sys.path[:] = [*sys.argv[4:], *sys.path[1:]]

from octaskly.runner.launch_protocol import (
    FrameBuffer,
    decode_settings,
    pack_frame,
    receive_with_fds,
)
from octaskly.runner.launcher.attempt_process import (
    BUFFER_BYTES_MAX,
    NEVER,
    AttemptProcess,
    PipeReader,
    StartOrder,
)
from octaskly.runner.launcher.deadlines import TaskDeadlines
from octaskly.runner.launcher.outbox import HOLD_WAITING_MIN, Outbox
from octaskly.runner.launcher.process_tracker import ProcessTracker
from octaskly.runner.launcher.sigchld import ChildReaper
from octaskly.runner.launcher.slots import SlotAllocator
from octaskly.runner.launcher.spawn import (
    DescriptorLimits,
    SpawnContext,
    SpawnRefused,
    build_refused_message,
)
from octaskly.runner.processes.limits import build_limit_enforcer
from octaskly.runner.processes.privileges import switch_user
from octaskly.runner.processes.proc_tree import become_subreaper

WATCH_AFTER_S = 0.005  #: most tasks end earlier and need no epoll calls
UNDRAINED_MAX = 8  #: ended attempts whose output is read in one batch
ORDER_WAIT_S_MAX = 0.05  #: an order that has not started by then is returned
OOM_SCORE = 500  #: counts like half of the memory in use
KILL_RETRY_S = 0.025
KILL_GIVE_UP_S = 5.0  #: after this, report a process stuck in the kernel


class Launcher:
    """Runs orders in a fixed number of slots.

    Args:
        control: The socket to the agent.
        begun_key: Memory for the key of the last order that was begun.
        settings: The launcher's settings.
    """

    def __init__(
        self,
        control: socket.socket,
        begun_key: memoryview,
        settings: dict[str, object],
    ) -> None:
        self._control, self._begun_key = control, begun_key
        slots = int(str(settings["slots"]))
        limits = DescriptorLimits.for_slots(slots)
        limits.raise_own()
        self._spawn_context = _spawn_context(settings, limits)
        # The agent's own umask is stricter, because of its secrets.
        os.umask(int(str(settings["umask"])))
        self._transcript_bytes_max = int(str(settings["transcript_bytes_max"]))
        self._frame_buffer = FrameBuffer()
        # By message; they arrive before it.
        self._received_fds: deque[list[int]] = deque()
        # Ended attempts: their slots are free, their pipes still open.
        self._undrained: list[AttemptProcess] = []
        self._waiting: deque[StartOrder] = deque()
        self._running: dict[int, AttemptProcess] = {}  # by pid
        self._repeated = 0  # running attempts that are not the first of their task
        # Attempts whose pipes are not registered yet, oldest first.
        self._unwatched: deque[AttemptProcess] = deque()
        # By the descriptor of a registered pipe.
        self._pipe_readers: dict[int, AttemptProcess] = {}
        self._last_end_s = 0.0
        self._polled_s = 0.0  # time of the last poll
        self._unkilled: list[AttemptProcess] = []
        self._exits: deque[tuple[int, int, bytes]] = deque()
        self._has_children = False  #: children of any kind, also orphans of tasks
        self._is_closing = False
        self._epoll = select.epoll()
        self._outbox = Outbox(control, self._epoll)
        self._reaper = ChildReaper()
        self._process_tracker = ProcessTracker(self._running, self._reap_children)
        grace_s = float(str(settings["kill_grace_s"]))
        self._deadlines = TaskDeadlines(self._running, self._process_tracker, grace_s)
        folder = str(settings["cgroup"])
        self._slots = SlotAllocator(
            int(str(settings["first_slot"])),
            slots,
            Path(folder) if folder else None,
        )

    def run(self) -> None:
        """Run orders until the agent is gone, then kill every process tree."""
        self._control.settimeout(0)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            # These signals are for the agent, which then closes its launchers.
            signal.signal(number, signal.SIG_IGN)
        self._epoll.register(self._control, select.EPOLLIN)
        self._epoll.register(self._reaper.fd, select.EPOLLIN)
        is_exit_only = False
        while not (self._is_closing or self._outbox.is_agent_gone):
            self._wait_for_events(is_exit_awaited_only=is_exit_only)
            self._handle_exits()
            self._start_waiting()
            is_exit_only = self._is_exit_awaited_only()
            if is_exit_only and len(self._undrained) < UNDRAINED_MAX:
                continue  # Draining several at a time is faster, with warm caches.
            self._drain_ended()
            now_s = time.monotonic()
            self._run_timers(now_s)
            self._outbox.send_due(0 if self._repeated else len(self._waiting), now_s)
        self._drain_ended()
        self._kill_all()
        self._outbox.send_all()

    def _wait_for_events(self, *, is_exit_awaited_only: bool) -> None:
        if not is_exit_awaited_only:
            for fd, _ in self._epoll.poll(self._pause_s()):
                self._handle_fd(fd)
            self._polled_s = time.monotonic()
        self._has_children = self._reap_children()
        if is_exit_awaited_only and not self._exits:
            self._reaper.wait_for_signal(WATCH_AFTER_S)
            self._has_children = self._reap_children()

    def _is_exit_awaited_only(self) -> bool:
        """Return True if all slots are taken and orders wait: only an exit matters."""
        return (
            len(self._waiting) >= HOLD_WAITING_MIN
            and not (self._slots or self._pipe_readers or self._outbox.is_blocked)
            and bool(self._unwatched)
            and time.monotonic() - self._polled_s < WATCH_AFTER_S
        )

    def _handle_fd(self, fd: int) -> None:
        if fd == self._reaper.fd:
            self._reaper.read_signal()
        elif fd == self._control.fileno():
            self._receive_orders()
        elif (child := self._pipe_readers.get(fd)) is not None:
            reader = child.stdout if child.stdout.fd == fd else child.stderr
            reader.read_chunk()
            if not reader.is_open:
                del self._pipe_readers[fd]
            elif not child.has_requested_file and len(reader.head) > BUFFER_BYTES_MAX:
                self._ask_for_file(child)

    # -- the pool --------------------------------------------------------------

    def _receive_orders(self) -> None:
        try:
            data, fds = receive_with_fds(self._control)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", None
        if fds is not None:
            self._received_fds.append(fds)
        if not data:
            self._is_closing = True
            return
        for name, *fields in self._frame_buffer.add_data(data):
            self._handle_order(name, fields)

    def _handle_order(self, name: object, fields: list[object]) -> None:
        match name:
            case "run":
                self._add_order(fields)
            case "stop":
                self._stop_attempt(*fields)
            case "file":
                fds: list[int] = []
                with suppress(OSError):  # Without the file, the rest is only counted.
                    fds = self._take_fds(int(bool(fields[1])))
                self._attach_file(fields[0], fds[0] if fds else None)
            case "recall":
                self._return_waiting()
            case "freeze" | "thaw":
                self._deadlines.set_frozen(time.monotonic(), is_frozen=name == "freeze")
            case _:
                assert name == "close"
                self._is_closing = True

    def _add_order(self, fields: list[object]) -> None:
        order = StartOrder(*fields, queued_s=time.monotonic())  # type: ignore[arg-type]
        try:
            fds = self._take_fds(order.options.get("fds", 0))
            if "has_stdin_file" in order.options:
                order.stdin_fd = fds.pop()
            order.limit_enforcer = build_limit_enforcer(order.options, fds)
        except OSError as error:
            order.close_stdin()
            self._outbox.add_message("refused", order.key, str(error.strerror))
        else:
            self._waiting.append(order)

    def _take_fds(self, count: int) -> list[int]:
        """Return the descriptors of a message; raise OSError if some were dropped."""
        fds = self._received_fds.popleft() if count else []
        if len(fds) < count:
            for fd in fds:
                os.close(fd)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return fds

    def _stop_attempt(self, key: object, end_reason: object) -> None:
        # One that has ended already, by itself, counts as such.
        self._has_children = self._reap_children()
        ended = {pid for pid, _, _ in self._exits}
        for child in self._running.values():
            if child.key == key and child.pid not in ended:
                self._deadlines.end_task(child, str(end_reason), time.monotonic())
        for order in [order for order in self._waiting if order.key == key]:
            self._waiting.remove(order)
            self._return_order(order)

    def _return_waiting(self) -> None:
        while self._waiting:
            self._return_order(self._waiting.popleft())

    def _return_order(self, order: StartOrder) -> None:
        order.close_stdin()
        self._outbox.add_message("back", order.key)

    # -- output in files -------------------------------------------------------

    def _ask_for_file(self, child: AttemptProcess) -> None:
        """Ask for a file; stop reading until then, so that the full pipe blocks."""
        child.has_requested_file = True
        self._outbox.add_message("full", child.key)
        for reader in (child.stdout, child.stderr):
            if self._pipe_readers.pop(reader.fd, None) is not None:
                reader.unregister()

    def _attach_file(self, key: object, fd: int | None) -> None:
        child = next((c for c in self._running.values() if c.key == key), None)
        if child is None or child.output_file is not None:
            if fd is not None:
                os.close(fd)
            return
        child.has_requested_file = True
        if fd is not None:
            child.attach_file(fd, self._transcript_bytes_max)
        for reader in (child.stdout, child.stderr):
            if reader.is_open and reader.fd not in self._pipe_readers:
                self._watch_pipe(reader, child)

    # -- starting --------------------------------------------------------------

    def _start_waiting(self) -> None:
        while (
            self._waiting
            and not self._deadlines.is_frozen
            and self._slots
            and not self._outbox.is_full
        ):
            self._start_attempt(self._waiting.popleft())

    def _start_attempt(self, order: StartOrder) -> None:
        if order.is_repeated or self._repeated:
            # It may have ended a launcher before: results must not be lost with this.
            self._drain_ended()
            self._outbox.send_due(0, time.monotonic())
        self._begun_key[0] = order.key
        now_s, now_ms = time.monotonic(), int(time.time() * 1000)
        slot = self._slots.acquire_slot(order.limit_enforcer)
        try:
            child = self._spawn_context.spawn_attempt(
                order, slot, begin_s=now_s, begin_ms=now_ms
            )
        except SpawnRefused as refusal:
            self._slots.release_slot(slot)
            if refusal.is_final:
                self._outbox.add_message(*build_refused_message(order, now_ms, refusal))
            else:
                self._outbox.add_message("refused", order.key, str(refusal))
            return
        finally:
            if slot.group is not None:
                self._slots.leave_group()
        self._running[child.pid] = child
        self._repeated += order.is_repeated
        self._unwatched.append(child)
        self._deadlines.add_task(child)

    # -- ending ----------------------------------------------------------------

    def _reap_children(self) -> bool:
        """Reap ended children; return True if any child is left."""
        reaper = self._reaper
        while (pid := reaper.reap_child()) > 0:
            if pid in self._running:
                self._exits.append((pid, reaper.status, reaper.usage_bytes))
            else:
                self._process_tracker.on_reaped(pid)
        return pid == 0

    def _handle_exits(self) -> None:
        while self._exits:
            pid, status, usage = self._exits.popleft()
            child = self._running.pop(pid)
            self._repeated -= child.is_repeated
            now_s = self._last_end_s = time.monotonic()
            child.mark_exited(
                status, usage, now_s=now_s, now_ms=int(time.time() * 1000)
            )
            if not self._has_children or self._process_tracker.kill_remaining(child):
                self._slots.release_slot(child.slot)
                self._undrained.append(child)
            else:
                self._drain_attempt(child)
                self._unkilled.append(child)

    def _drain_ended(self) -> None:
        """Read the last output of ended attempts, whose slots are free already."""
        for child in self._undrained:
            self._drain_attempt(child)
            self._outbox.add_end(child)
        self._undrained.clear()

    def _drain_attempt(self, child: AttemptProcess) -> None:
        if self._pipe_readers:
            for reader in (child.stdout, child.stderr):
                if reader.is_open:  # Another pipe may have the number of a closed one.
                    self._pipe_readers.pop(reader.fd, None)
        child.drain_output()

    def _kill_all(self) -> None:
        give_up_s = time.monotonic() + KILL_GIVE_UP_S
        while self._reap_children() and time.monotonic() < give_up_s:
            self._process_tracker.kill_all()
            time.sleep(0.001)

    # -- time ------------------------------------------------------------------

    def _pause_s(self) -> float:
        if self._exits:
            return 0.0
        pause_s = min(self._outbox.hold_s, KILL_RETRY_S if self._unkilled else NEVER)
        due_s = self._deadlines.due_s
        if self._unwatched:
            due_s = min(due_s, self._unwatched[0].started_s + WATCH_AFTER_S)
        if self._waiting:
            due_s = min(due_s, time.monotonic() + ORDER_WAIT_S_MAX / 2)
        if due_s < NEVER:
            pause_s = min(pause_s, max(0.0, due_s - time.monotonic()) + 0.0005)
        return pause_s if pause_s < NEVER else -1.0

    def _run_timers(self, now_s: float) -> None:
        while self._unwatched and self._unwatched[0].started_s + WATCH_AFTER_S <= now_s:
            self._watch_output(self._unwatched.popleft())
        self._deadlines.run_due(now_s)
        if self._waiting:
            quiet_s = now_s - max(self._waiting[0].queued_s, self._last_end_s)
            if quiet_s >= ORDER_WAIT_S_MAX:
                self._return_waiting()
        if self._unkilled:
            self._kill_leftovers(now_s)

    def _watch_output(self, child: AttemptProcess) -> None:
        if self._running.get(child.pid) is not child:
            return
        self._outbox.add_message("alive", child.key, child.pid)
        for reader in (child.stdout, child.stderr):
            self._watch_pipe(reader, child)

    def _watch_pipe(self, reader: PipeReader, child: AttemptProcess) -> None:
        reader.register(self._epoll)
        self._pipe_readers[reader.fd] = child

    def _kill_leftovers(self, now_s: float) -> None:
        dying, self._unkilled = self._unkilled, []
        for child in dying:
            is_gone = self._process_tracker.kill_remaining(child)
            if not is_gone and now_s < child.ended_s + KILL_GIVE_UP_S:
                self._unkilled.append(child)
                continue
            if not is_gone:
                self._process_tracker.give_up(child)
                child.detail = "processes of this task could not be killed"
            self._slots.release_slot(child.slot, is_empty=is_gone)
            self._outbox.add_end(child)


def _spawn_context(
    settings: dict[str, object], limits: DescriptorLimits
) -> SpawnContext:
    return SpawnContext(
        limits=limits,
        workdir=str(settings["workdir"]),
        node=str(settings["node"]),
        output_bytes_max=int(str(settings["output_bytes_max"])),
        has_ctype=bool(settings["has_ctype"]),
    )


def raise_oom_score() -> None:
    """Make the kernel kill tasks, not their agent, when memory runs out.

    Tasks inherit the score. A task that uses much memory is killed before this process,
    which is smaller.
    """
    score = Path("/proc/self/oom_score_adj")
    with suppress(OSError, ValueError):
        if int(score.read_text()) < OOM_SCORE:
            score.write_text(str(OOM_SCORE))


def restore_core_limit(bytes_max: int) -> None:
    """Restore the limit on core files, which the agent lowered for itself."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (bytes_max, hard))


def main() -> None:
    """Run as `launcher.py CONTROL_FD BEGUN_FD SETTINGS FOLDER...`."""
    control, begun_fd = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    control.set_inheritable(False)
    # Tasks must not inherit descriptors that the agent inherited from its parent.
    names = os.listdir("/proc/self/fd")  # noqa: PTH208 - names are enough
    os.closerange(begun_fd + 1, max(map(int, names)) + 1)
    begun_key = memoryview(mmap.mmap(begun_fd, 0)).cast("Q")
    os.closerange(control.fileno() + 1, begun_fd + 1)
    become_subreaper()
    raise_oom_score()
    settings = decode_settings(sys.argv[3])
    launcher = Launcher(control, begun_key, settings)
    if settings["core_bytes"] is not None:
        restore_core_limit(int(str(settings["core_bytes"])))
    if settings["user"]:  # `Launcher` has opened what only the agent's user may open.
        switch_user(*settings["user"])
    # The launcher creates almost no reference cycles, so collect them rarely.
    gc.freeze()
    gc.set_threshold(20_000)
    # Sent before any order: if a launcher dies before this, no task caused it.
    with suppress(OSError):  # The agent is gone; `run` notices it.
        control.sendall(pack_frame([["ready", 0]]))
    launcher.run()


if __name__ == "__main__":
    main()
