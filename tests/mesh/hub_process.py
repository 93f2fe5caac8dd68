"""A user-space Ethernet hub with faults for each direction, and its process.

`python -m tests.mesh.hub_process SEED TAP=MAC...` attaches to one tap device for each
host. It reads a JSON line with all rules at a time from stdin, and answers each with a
line of counters.
"""

import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
HEADER_BYTES = 14  #: of an Ethernet frame, before its packet
PACKET_BYTES_MAX = 1500
FRAME_READ_BYTES = 65_536
FRAMES_WAITING_MAX = 1000  #: in one direction; further frames are dropped
FRAMES_AT_ONCE = 64  #: read from one tap before the next one has its turn
LATE_S = 0.05  #: how much a frame is late if others overtake it

Direction = tuple[int, int]  #: ports of sender and receiver


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What happens to the frames in one direction."""

    loss: float = 0.0  #: share of frames that are dropped
    delay_s: float = 0.0
    jitter_s: float = 0.0  #: additional delay, drawn for each frame; the order stays
    duplicated: float = 0.0  #: share of frames that arrive twice
    overtaken: float = 0.0  #: share of frames that come `LATE_S` late, after later ones
    mtu_bytes: int = PACKET_BYTES_MAX  #: frames with a longer packet are dropped


CUT = Rule(loss=1.0)
PERFECT = Rule()


class Switch:
    """Decides when each frame reaches which ports; it does no I/O.

    It floods frames to unknown addresses, thus also broadcast and multicast.
    """

    def __init__(self, macs: Sequence[bytes], seed: str) -> None:
        self.rules: Mapping[Direction, Rule] = {}
        self.counts: Counter[str] = Counter()
        self._ports = {mac: port for port, mac in enumerate(macs)}
        self._draw = random.Random(seed)
        self._waiting: list[tuple[float, int, Direction, bytes]] = []
        self._in_flight: Counter[Direction] = Counter()
        self._last_due_s: dict[Direction, float] = {}

    def receive(self, source: int, frame: bytes, now_s: float) -> None:
        """Take a frame from a port, for delivery by `due`."""
        port = self._ports.get(frame[:6])
        targets = self._ports.values() if port is None else (port,)
        for target in targets:
            if target != source:
                self._send((source, target), frame, now_s)

    def due(self, now_s: float) -> list[tuple[int, bytes]]:
        """Return the frames that arrive by now, with their ports, in order."""
        frames = []
        while self._waiting and self._waiting[0][0] <= now_s:
            _, _, direction, frame = heapq.heappop(self._waiting)
            self._in_flight[direction] -= 1
            frames.append((direction[1], frame))
        self.counts["delivered"] += len(frames)
        return frames

    def wait_s(self, now_s: float) -> float | None:
        """Return the time until a frame is due; None: no frame waits."""
        return max(0.0, self._waiting[0][0] - now_s) if self._waiting else None

    def _send(self, direction: Direction, frame: bytes, now_s: float) -> None:
        rule = self.rules.get(direction, PERFECT)
        if len(frame) > rule.mtu_bytes + HEADER_BYTES:
            self.counts["too long"] += 1
            return
        if self._hits(rule.loss):
            self.counts["lost"] += 1
            return
        copies = 1 + self._hits(rule.duplicated)
        self.counts["duplicated"] += copies - 1
        for _ in range(copies):
            self._enqueue(direction, rule, frame, now_s)

    def _enqueue(
        self, direction: Direction, rule: Rule, frame: bytes, now_s: float
    ) -> None:
        if self._in_flight[direction] >= FRAMES_WAITING_MAX:
            self.counts["queue full"] += 1
            return
        due_s = now_s + rule.delay_s + rule.jitter_s * self._draw.random()
        due_s = max(due_s, self._last_due_s.get(direction, 0.0))
        if self._hits(rule.overtaken):
            self.counts["overtaken"] += 1
            due_s += LATE_S
        else:
            self._last_due_s[direction] = due_s
        self._in_flight[direction] += 1
        self.counts["taken"] += 1
        entry = (due_s, self.counts["taken"], direction, frame)
        heapq.heappush(self._waiting, entry)

    def _hits(self, share: float) -> bool:
        return share > 0.0 and self._draw.random() < share


def parse_rules(line: bytes) -> dict[Direction, Rule]:
    """Return the rules of a line, a list of source, target and fields."""
    return {
        (source, target): Rule(**fields) for source, target, fields in json.loads(line)
    }


class Hub:
    """Moves frames between tap devices through a switch."""

    def __init__(self, switch: Switch, names: Iterable[str]) -> None:
        self._switch = switch
        self._taps = [_open_tap(name) for name in names]
        self._selector = selectors.DefaultSelector()
        for port, tap in enumerate(self._taps):
            self._selector.register(tap, selectors.EVENT_READ, port)
        self._selector.register(0, selectors.EVENT_READ, None)
        self._line = b""

    def run(self) -> None:
        """Run until stdin ends."""
        while True:
            wait_s = self._switch.wait_s(time.monotonic())
            for key, _ in self._selector.select(wait_s):
                if key.data is not None:
                    self._read(key.data)
                elif not self._obey():
                    return
            for port, frame in self._switch.due(time.monotonic()):
                try:
                    os.write(self._taps[port], frame)
                except OSError:  # Its queue is full or its link is down.
                    self._switch.counts["not taken"] += 1

    def _read(self, port: int) -> None:
        for _ in range(FRAMES_AT_ONCE):
            try:
                frame = os.read(self._taps[port], FRAME_READ_BYTES)
            except OSError:  # None is left, or its link is down.
                return
            self._switch.receive(port, frame, time.monotonic())

    def _obey(self) -> bool:
        """Apply the rules in stdin; return False at its end."""
        data = os.read(0, FRAME_READ_BYTES)
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._switch.rules = parse_rules(line)
            print(json.dumps(self._switch.counts), flush=True)
        return bool(data)


def _open_tap(name: str) -> int:
    """Attach to a tap device, and return its descriptor."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(
        tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI)
    )
    return tap


def main(seed: str, *taps: str) -> None:
    """Run a hub; each tap is `NAME=MAC`."""
    names, macs = zip(*(tap.split("=") for tap in taps), strict=True)
    switch = Switch([bytes.fromhex(mac.replace(":", "")) for mac in macs], seed)
    Hub(switch, names).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
