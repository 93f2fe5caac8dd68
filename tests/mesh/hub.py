"""A hub that takes the place of a lab's switch, and delays, drops or repeats frames.

    hub = Hub(lab)
    hub.shape(Rule(loss=0.3), sources=[dispatcher])
    hub.cut([worker], [dispatcher])
    hub.clear()

While a lab has a hub, `lab.split` and `lab.join` must not be used, because they move
the cables of hosts. `lab.cut` and `lab.heal` work as always.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from tests.mesh.hub_process import CUT, Direction, Rule
from tests.mesh.lab import ROOT, Host, Lab
from tests.mesh.netns import have_carrier, ip, wait_until

CARRIER_S = 45.0
ALL: Sequence[Host] = ()  #: every host of the lab


class Hub:
    """A hub process between the hosts of a lab; it ends with the lab."""

    def __init__(self, lab: Lab, seed: str = "1") -> None:
        self._hosts = lab.hosts
        self._rules: dict[Direction, Rule] = {}
        # A bridge for each host, whose only other port is the host's tap of the hub.
        lab.split(*([host] for host in lab.hosts))
        for port in range(len(lab.hosts)):
            ip(
                f"tuntap add dev tap{port} mode tap",
                f"link set tap{port} master br{port} up",
                netns=lab.switch,
            )
        taps = [f"tap{port}={host.mac}" for port, host in enumerate(lab.hosts)]
        self._process = subprocess.Popen(
            [
                *("ip", "netns", "exec", lab.switch),
                *(sys.executable, "-m", "tests.mesh.hub_process", seed, *taps),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        lab.processes.append(self._process)
        self.clear()
        wait_until(
            "the hub has all cables",
            lambda: have_carrier(lab.switch, kind="tun"),
            within_s=CARRIER_S,
        )

    def shape(
        self,
        rule: Rule,
        sources: Sequence[Host] = ALL,
        targets: Sequence[Host] = ALL,
    ) -> Mapping[str, int]:
        """Set the rule for frames from each source to each target.

        Returns:
            Counts of frames so far, by their fate.
        """
        self._rules |= {
            (self._hosts.index(source), self._hosts.index(target)): rule
            for source in sources or self._hosts
            for target in targets or self._hosts
            if source is not target
        }
        return self._apply()

    def cut(self, sources: Sequence[Host] = ALL, targets: Sequence[Host] = ALL) -> None:
        """Drop all frames from each source to each target, but not those back."""
        self.shape(CUT, sources, targets)

    def make_ring(self) -> None:
        """Let each host reach only the host before it and the one after it."""
        many = len(self._hosts)
        for number, host in enumerate(self._hosts):
            near = {number, (number + 1) % many, (number - 1) % many}
            far = [peer for n, peer in enumerate(self._hosts) if n not in near]
            if far:
                self.cut([host], far)

    def clear(self) -> Mapping[str, int]:
        """End all faults; return counts of frames so far, by their fate."""
        self._rules.clear()
        return self._apply()

    def _apply(self) -> Mapping[str, int]:
        rules = [[*ports, asdict(rule)] for ports, rule in self._rules.items()]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(rules).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the hub ended with {self._process.wait()}"
        counts: dict[str, int] = json.loads(line)
        return counts
