"""What a launcher has to tell its agent: together, while there is more to start."""

from __future__ import annotations

import select
import socket
from contextlib import suppress

from octaskly.runner.launch_protocol import pack_results
from octaskly.runner.launcher.child import AttemptProcess
from octaskly.runner.processes.limits import UsageReader

HOLD_MAX_S = 0.05  #: ends wait so long for others while there is more to start
STATUS_HOLD_S = 0.025  #: and what is no end, as it tells of what is not brief
HOLD_WAITING_MIN = 2  #: fewer orders than this wait: the pool must hear of results
OUTBOX_BYTES_MAX = 16 << 20  #: nothing is started while so much is unsent
FINAL_SEND_S = 1.0  #: for an agent to take what is told at the end


class Outbox:
    """Results on their way to the agent.

    Args:
        control: The socket to the agent, which does not block.
        epoll: Where it is registered, for what it can read.
    """

    def __init__(self, control: socket.socket, epoll: select.epoll) -> None:
        self._control = control
        self._epoll = epoll
        self._bytes = bytearray()
        self._results: list[list[object] | AttemptProcess] = []
        self._held_since_s = 0.0
        self._hold_s = HOLD_MAX_S
        self._usage_reader = UsageReader()
        self.is_blocked = False  #: the socket is full, so we wait for room
        self.is_agent_gone = False  #: the agent is gone

    @property
    def is_full(self) -> bool:
        """Whether so much is unsent that nothing may be added to it."""
        return len(self._bytes) >= OUTBOX_BYTES_MAX

    @property
    def hold_s(self) -> float:
        """How long results that are held may wait; for ever where there are none."""
        return self._hold_s if self._results else float("inf")

    def add_message(self, *result: object) -> None:
        """Tell a result that is no end."""
        self._hold_s = STATUS_HOLD_S
        self._results.append(list(result))

    def add_end(self, child: AttemptProcess) -> None:
        """Tell the end of an attempt, whose message is made when it is sent.

        Many at a time take a third of what each would take after a pause.
        """
        self._results.append(child)

    def send_due(self, waiting: int, now_s: float) -> None:
        """Send what there is, unless it may wait.

        Args:
            waiting: Orders that can be started.
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
        """Send all that there is, if the agent still reads."""
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
        # One wake-up of the agent for several results, while it has nothing to add.
        if waiting < HOLD_WAITING_MIN:
            return False
        self._held_since_s = self._held_since_s or now_s
        return now_s - self._held_since_s < self._hold_s
