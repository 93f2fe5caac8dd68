"""The launcher: a small process that starts tasks and sees them end.

It is started by file, without site-packages and without the agent's modules, so that
it takes few milliseconds and megabytes. One thread, one epoll: orders come over the
control socket, SIGCHLD wakes it for what ended, pipes are watched only for tasks that
live longer than a moment. When the control socket ends, the agent is gone, and every
tree is killed.

Frames on the control socket: 4 bytes of length, big-endian, then a msgpack list of
messages, each a list that begins with its name. To the launcher: `run` key task
attempt command timeout_s; `stop` key; `back`; `close`. From the launcher: `alive` key
pid; `back` key; `end` and the fields of `End`.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Mapping

if __name__ == "__main__":
    # Isolated mode leaves out the folders of msgpack and of this package; the agent
    # names them. The script's own folder would make its modules top-level.
    sys.path[:] = [*sys.argv[3:], *sys.path[1:]]

import msgpack

from octaskly.runner import tree
from octaskly.runner.child import NOT_STARTED, Child, Order, spawn

WATCH_AFTER_S = 0.005  #: most tasks are over by then, and cost no epoll calls
WAIT_MAX_S = 0.05  #: an order that has not started by then is given back
HOLD_MAX_S = 0.003  #: results wait so long for others while there is more to start
HOLD_WAITING_MIN = 3  #: fewer orders than this wait: the pool must hear of results
OUTBOX_BYTES_MAX = 16 << 20  #: nothing is started while so much is unsent
RECEIVE_BYTES = 1 << 18
KILL_ROUNDS = 40
KILL_AGAIN_S = 0.02
KILL_GIVE_UP_S = 5.0  #: a process in the kernel for so long is reported, not awaited

_LENGTH = struct.Struct(">I")
_PR_SET_CHILD_SUBREAPER = 36


def pack(messages: list[list[object]]) -> bytes:
    """Return one frame."""
    body = msgpack.packb(messages)
    return _LENGTH.pack(len(body)) + body


def encode_settings(settings: Mapping[str, object]) -> str:
    """Return settings as one word of a command line."""
    return msgpack.packb(dict(settings)).hex()  # type: ignore[no-any-return]


def msgpack_folder() -> str:
    """Return the folder that a launcher needs on its path besides this package's."""
    return os.path.dirname(os.path.dirname(msgpack.__file__))


class Inbox:
    """Cuts a byte stream into frames."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[list[object]]:
        """Take bytes; return the messages that are complete."""
        buffer = self._buffer
        buffer += data
        messages: list[list[object]] = []
        while len(buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
            if len(buffer) < end:
                break
            messages.extend(msgpack.unpackb(bytes(buffer[_LENGTH.size : end])))
            del buffer[:end]
        return messages


def become_subreaper() -> None:
    """Let orphans below this process become its children, not init's."""
    import ctypes  # noqa: PLC0415 - the one thing that needs it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become subreaper")


class Launcher:
    """Runs orders in a fixed number of slots."""

    def __init__(self, control: socket.socket, settings: dict[str, object]) -> None:
        self._control = control
        self._slots = int(str(settings["slots"]))
        self._workdir = str(settings["workdir"])
        self._node = str(settings["node"])
        self._limit = int(str(settings["output_bytes_max"]))
        self._grace_s = float(str(settings["kill_grace_s"]))
        self._env = dict(os.environb)
        self._env[b"OCTASKLY_NODE"] = self._node.encode()
        # What a shell would export; a program started directly must see the same.
        self._env[b"PWD"] = os.fsencode(os.path.realpath(self._workdir))
        self._inbox = Inbox()
        self._outbox = bytearray()
        self._results: list[list[object]] = []
        self._held_since_s = 0.0
        self._waiting: deque[Order] = deque()
        self._running: dict[int, Child] = {}  # by pid
        self._fresh: deque[Child] = deque()  # not watched yet, oldest first
        self._sinks: dict[int, Child] = {}  # by pipe descriptor, watched ones
        self._next_deadline_s = float("inf")
        self._last_end_s = 0.0
        self._dying: list[tuple[float, Child, list[object]]] = []
        self._orphans: dict[int, tuple[int, set[int]]] = {}
        self._exits: deque[tuple[int, int]] = deque()
        self._is_closing = False
        self._epoll = select.epoll()
        self._wake, self._waker = socket.socketpair()
        self._children_fd = os.open(
            f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC
        )

    def run(self) -> None:
        """Serve until the agent is gone, then end every tree."""
        for end in (self._control, self._wake, self._waker):
            end.setblocking(False)
            end.set_inheritable(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._epoll.register(self._control, select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)
        while not self._is_closing:
            for fd, _mask in self._epoll.poll(self._pause_s()):
                self._handle(fd)
            self._reap()
            self._start_waiting()
            self._keep_time(time.monotonic())
            self._send()
        self._end_all()
        self._send_last()

    def _handle(self, fd: int) -> None:
        if fd == self._control.fileno():
            self._receive()
        elif fd == self._wake.fileno():
            self._wake.recv(4096)
        elif (child := self._sinks.get(fd)) is not None:
            sink = child.out if child.out.fd == fd else child.err
            sink.read()
            if not sink.is_open:  # Closing has taken it out of the epoll.
                del self._sinks[fd]

    # -- the pool --------------------------------------------------------------

    def _receive(self) -> None:
        try:
            data = self._control.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._is_closing = True
            return
        for message in self._inbox.feed(data):
            name, *fields = message
            if name == "run":
                self._waiting.append(Order(*fields))  # type: ignore[arg-type]
            elif name == "stop":
                self._stop(fields[0])
            elif name == "back":
                self._give_back()
            elif name == "close":
                self._is_closing = True

    def _stop(self, key: object) -> None:
        for child in self._running.values():
            if child.key == key and child.verdict != "cancelled":
                child.verdict = "cancelled"
                self._terminate(child)
        for order in self._waiting:
            if order.key == key:
                self._waiting.remove(order)
                self._results.append(["back", key])
                return

    def _give_back(self) -> None:
        self._results.extend(["back", order.key] for order in self._waiting)
        self._waiting.clear()

    def _send(self) -> None:
        if self._results and not self._is_holding():
            self._outbox += pack(self._results)
            self._results.clear()
            self._held_since_s = 0.0
        if not self._outbox:
            return
        try:
            sent = self._control.send(self._outbox)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._is_closing = True
            return
        del self._outbox[:sent]
        interest = select.EPOLLIN | (select.EPOLLOUT if self._outbox else 0)
        self._epoll.modify(self._control, interest)

    def _send_last(self) -> None:
        """Send what had ended before the order to close, if the agent still reads."""
        self._control.settimeout(1.0)
        try:
            self._control.sendall(bytes(self._outbox) + pack(self._results))
        except OSError:
            return

    def _is_holding(self) -> bool:
        # One wake-up of the agent for several results, while it has nothing to add.
        now_s = time.monotonic()
        if len(self._waiting) < HOLD_WAITING_MIN:
            return False
        self._held_since_s = self._held_since_s or now_s
        return now_s - self._held_since_s < HOLD_MAX_S

    # -- starting --------------------------------------------------------------

    def _start_waiting(self) -> None:
        while (
            self._waiting
            and len(self._running) + len(self._dying) < self._slots
            and len(self._outbox) < OUTBOX_BYTES_MAX
        ):
            self._start(self._waiting.popleft())

    def _start(self, order: Order) -> None:
        try:
            os.chdir(self._workdir)
        except OSError as error:
            reason = error.strerror or "cannot be entered"
            if isinstance(error, FileNotFoundError):
                reason = "does not exist"
            self._refuse(
                order, f"working directory {self._workdir} on {self._node}: {reason}"
            )
            return
        env = self._env.copy()
        env[b"OCTASKLY_TASK_ID"] = order.task.encode()
        env[b"OCTASKLY_ATTEMPT"] = order.attempt.encode()
        try:
            child = spawn(order, env, self._limit)
        except (OSError, ValueError) as error:
            self._refuse(order, f"cannot execute: {error}")
            return
        self._running[child.pid] = child
        self._fresh.append(child)
        self._next_deadline_s = min(self._next_deadline_s, child.deadline_s)

    def _refuse(self, order: Order, detail: str) -> None:
        now_ms = int(time.time() * 1000)
        end = ["end", order.key, NOT_STARTED, "", now_ms, now_ms, 0]
        self._results.append([*end, b"", b"", 0, 0, detail])

    # -- ending ----------------------------------------------------------------

    def _collect(self) -> bool:
        """Reap what has ended; return whether any child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid in self._running:
                self._exits.append((pid, status))
            else:
                self._orphans.pop(pid, None)

    def _reap(self) -> None:
        has_children = self._collect()
        while self._exits:
            pid, status = self._exits.popleft()
            self._finish(self._running.pop(pid), status, has_children=has_children)

    def _finish(self, child: Child, status: int, *, has_children: bool) -> None:
        now_s = time.monotonic()
        self._last_end_s = now_s
        end: list[object] = [
            "end",
            child.key,
            os.waitstatus_to_exitcode(status),
            child.verdict,
            child.started_ms,
            int(time.time() * 1000),
            int((now_s - child.started_s) * 1000),
        ]
        is_gone = not has_children or self._kill_tree(child)
        for sink in (child.out, child.err):
            if sink.is_open:  # Else the number may be another task's by now.
                self._sinks.pop(sink.fd, None)
        out, err = child.out.drain(), child.err.drain()
        end += [out, err, child.out.size_bytes, child.err.size_bytes, ""]
        if is_gone:
            self._results.append(end)
        else:
            self._dying.append((now_s + KILL_GIVE_UP_S, child, end))

    def _adopted(self) -> set[int]:
        """Return the children that are not tasks: orphans of tasks."""
        parts = []
        offset = 0
        while part := os.pread(self._children_fd, 65536, offset):
            parts.append(part)
            offset += len(part)
        return {int(pid) for pid in b"".join(parts).split()} - self._running.keys()

    def _dies_with(self, pid: int, ending: Child) -> bool:
        """Whether an adopted process is to die with the task that has ended."""
        owner, suspects = self._attribute(pid, ending)
        if owner:
            return owner == ending.pid
        suspects.intersection_update(self._running)
        return not suspects

    def _attribute(self, pid: int, child: Child) -> tuple[int, set[int]]:
        """Return whose an adopted process is, or else (0, whose it may be)."""
        if pid not in self._orphans:
            children = {child.pid: child} | self._running
            self._orphans[pid] = self._guess(pid, children, child)
        return self._orphans[pid]

    @staticmethod
    def _guess(
        pid: int, children: dict[int, Child], ending: Child
    ) -> tuple[int, set[int]]:
        process = tree.read_process(pid)
        if process is None:
            return ending.pid, set()
        if process.session in children:
            return process.session, set()
        environment = tree.read_environment(pid)
        for child in children.values():
            if tree.has_mark(environment, child.mark):
                return child.pid, set()
        return 0, set(children)

    def _kill_tree(self, child: Child) -> bool:
        """Kill what an ended task left; return whether nothing is left of it."""
        for _ in range(KILL_ROUNDS):
            adopted = self._adopted()
            mine = {pid for pid in adopted if self._dies_with(pid, child)}
            if not mine:
                return True
            processes = tree.table()
            for pid in tree.below(processes, mine):
                tree.signal_process(processes[pid], signal.SIGKILL)
            self._collect()
        return False

    def _terminate(self, child: Child) -> None:
        """Begin the end of a task that still runs: SIGTERM, then grace."""
        self._signal(child, signal.SIGTERM)
        child.deadline_s = time.monotonic() + self._grace_s
        self._next_deadline_s = min(self._next_deadline_s, child.deadline_s)

    def _signal(self, child: Child, number: int) -> None:
        processes = tree.table()
        adopted = self._adopted()
        roots = {pid for pid in adopted if self._attribute(pid, child)[0] == child.pid}
        roots |= {child.pid} | tree.in_session(processes, child.pid)
        for pid in tree.below(processes, roots):
            tree.signal_process(processes[pid], number)

    def _end_all(self) -> None:
        give_up_s = time.monotonic() + KILL_GIVE_UP_S
        while self._collect() and time.monotonic() < give_up_s:
            processes = tree.table()
            for pid in tree.below(processes, {os.getpid()}) - {os.getpid()}:
                tree.signal_process(processes[pid], signal.SIGKILL)
            time.sleep(0.001)

    # -- time ------------------------------------------------------------------

    def _pause_s(self) -> float:
        if self._results or self._dying:
            return HOLD_MAX_S
        due_s = self._next_deadline_s
        if self._fresh:
            due_s = min(due_s, self._fresh[0].started_s + WATCH_AFTER_S)
        if self._waiting:
            due_s = min(due_s, time.monotonic() + WAIT_MAX_S / 2)
        if due_s == float("inf"):
            return -1.0
        return max(0.0, due_s - time.monotonic()) + 0.0005

    def _keep_time(self, now_s: float) -> None:
        while self._fresh and self._fresh[0].started_s + WATCH_AFTER_S <= now_s:
            self._watch(self._fresh.popleft())
        if now_s >= self._next_deadline_s:
            self._enforce(now_s)
        if self._waiting:
            quiet_s = now_s - max(self._waiting[0].since_s, self._last_end_s)
            if quiet_s >= WAIT_MAX_S:
                self._give_back()
        if self._dying:
            self._bury(now_s)

    def _watch(self, child: Child) -> None:
        if child.pid not in self._running or child.is_watched:
            return
        child.is_watched = True
        self._results.append(["alive", child.key, child.pid])
        for sink in (child.out, child.err):
            self._epoll.register(sink.fd, select.EPOLLIN)
            self._sinks[sink.fd] = child

    def _enforce(self, now_s: float) -> None:
        for child in list(self._running.values()):
            if now_s < child.deadline_s:
                continue
            if child.verdict:
                self._signal(child, signal.SIGKILL)
                child.deadline_s = now_s + KILL_AGAIN_S
            else:
                child.verdict = "timeout"
                self._terminate(child)
        self._next_deadline_s = min(
            (child.deadline_s for child in self._running.values()),
            default=float("inf"),
        )

    def _bury(self, now_s: float) -> None:
        dying, self._dying = self._dying, []
        for give_up_s, child, end in dying:
            if self._kill_tree(child):
                self._results.append(end)
            elif now_s >= give_up_s:
                end[-1] = "processes of this task could not be killed"
                self._results.append(end)
            else:
                self._dying.append((give_up_s, child, end))


def main() -> None:
    """Run as `launcher.py CONTROL_FD SETTINGS FOLDER...`; settings are msgpack, hex."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    become_subreaper()
    Launcher(control, msgpack.unpackb(bytes.fromhex(sys.argv[2]))).run()


if __name__ == "__main__":
    main()
