"""Results on their way to the agent, batched while more orders wait."""

from __future__ import annotations

import select
import socket
from contextlib import suppress

from octaskly.runner.launch_protocol import pack_results
from octaskly.runner.launcher.attempt_process import AttemptProcess
from octaskly.runner.processes.limits import UsageReader

HOLD_MAX_S = 0.05  #: longest wait of an `end` for others while orders wait
STATUS_HOLD_S = 0.025  #: the same for other messages, about longer tasks
HOLD_WAITING_MIN = 2  #: with fewer waiting orders, results are sent at once
OUTBOX_BYTES_MAX = 16 << 20  #: no attempt is started while this much is unsent
FINAL_SEND_S = 1.0  #: timeout for the last results


class Outbox:
    """Results on their way to the agent.

    Args:
        control: The non-blocking socket to the agent.
        epoll: The epoll in which it is registered for reading.
    """

    def __init__(self, control: socket.socket, epoll: select.epoll) -> None:
        self._control = control
        self._epoll = epoll
        self._bytes = bytearray()
        self._results: list[list[object] | AttemptProcess] = []
        self._held_since_s = 0.0
        self._hold_s = HOLD_MAX_S
        self._usage_reader = UsageReader()
        self.is_blocked = False  #: the socket buffer is full
        self.is_agent_gone = False

    @property
    def is_full(self) -> bool:
        """Return True if too much is unsent to start attempts."""
        return len(self._bytes) >= OUTBOX_BYTES_MAX

    @property
    def hold_s(self) -> float:
        """Seconds that held results may wait; infinite without results."""
        return self._hold_s if self._results else float("inf")

    def add_message(self, *result: object) -> None:
        """Add a message other than `end`."""
        self._hold_s = min(self._hold_s, STATUS_HOLD_S)
        self._results.append(list(result))

    def add_end(self, child: AttemptProcess) -> None:
        """Add the `end` of an attempt; its message is built when it is sent.

        Building many messages at once takes a third of the time for each. A failure
        never waits for others: see `pool.report_queue`.
        """
        if child.status:
            self._hold_s = 0.0
        self._results.append(child)

    def send_due(self, waiting: int, now_s: float) -> None:
        """Send the results, unless they may still wait.

        Args:
            waiting: Number of orders that wait for a slot.
            now_s: Now, on the monotonic clock.
        """
        if self._results and not self._is_holding(waiting, now_s):
            self._bytes += self._pack()
            self._held_since_s, self._hold_s = 0.0, HOLD_MAX_S
        if not self._bytes:
            return
        try:
            sent = self._control.send(self._bytes)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.is_agent_gone = True
            return
        del self._bytes[:sent]
        if self.is_blocked != bool(self._bytes):
            self.is_blocked = not self.is_blocked
            out = select.EPOLLOUT if self.is_blocked else 0
            self._epoll.modify(self._control, select.EPOLLIN | out)

    def send_all(self) -> None:
        """Send all results, waiting at most `FINAL_SEND_S` for the agent to read."""
        self._control.settimeout(FINAL_SEND_S)
        with suppress(OSError):
            self._control.sendall(bytes(self._bytes) + self._pack())

    def _pack(self) -> bytes:
        results, self._results = self._results, []
        ends = [result for result in results if isinstance(result, AttemptProcess)]
        return pack_results(
            [
                r.build_end_message(self._usage_reader)
                if isinstance(r, AttemptProcess)
                else r
                for r in results
            ],
            sum(len(end.stdout.head) + len(end.stderr.head) for end in ends),
        )

    def _is_holding(self, waiting: int, now_s: float) -> bool:
        # Batching saves wake-ups of the agent, and enough orders wait here meanwhile.
        if waiting < HOLD_WAITING_MIN:
            return False
        self._held_since_s = self._held_since_s or now_s
        return now_s - self._held_since_s < self._hold_s
