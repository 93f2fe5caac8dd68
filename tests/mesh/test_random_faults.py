"""Half an hour of all faults at once: the final test that no task gets lost.

`SOAK_FAULTS_S` sets the duration, `SOAK_FAULTS_SEED` repeats a run. The test prints
both.
"""

import os
import random
import threading
import time
from collections.abc import Callable

import pytest

from tests.mesh.conftest import MakeLab
from tests.mesh.history import Pace
from tests.mesh.lab import Host
from tests.mesh.scene import Scene

DURATION_S = float(os.environ.get("SOAK_FAULTS_S", "1800"))
SEED = os.environ.get("SOAK_FAULTS_SEED") or str(random.SystemRandom().getrandbits(32))
HOSTS = 5
RECOVERY_SHARE = (
    0.6  #: share of faults after which the mesh may form again before the next
)

pytestmark = [
    pytest.mark.netns,
    pytest.mark.soak,
    pytest.mark.timeout(DURATION_S + 900),
]


class RandomFaults:
    """Faults drawn from a seed, each undone after a while."""

    def __init__(self, scene: Scene, seed: str) -> None:
        self._scene = scene
        self._draw = random.Random(seed)
        self.count = 0

    def cause_one(self) -> None:
        """Cause one fault and undo it."""
        kinds: list[Callable[[], None]] = [
            *(self._kill, self._kill_dispatcher, self._kill_two, self._kill_all),
            *(self._stop, self._freeze, self._cut, self._split, self._misroute),
        ]
        (kind,) = self._draw.choices(kinds, (3, 4, 2, 1, 3, 3, 3, 4, 2))
        print(f"{time.strftime('%H:%M:%S')} {kind.__name__.strip('_')}", flush=True)
        kind()
        self.count += 1
        if self._draw.random() < RECOVERY_SHARE:
            self._scene.await_mesh(within_s=120.0)
        self._wait(0.0, 3.0)

    def _kill(self) -> None:
        self._kill_these(self._some(1))

    def _kill_dispatcher(self) -> None:
        self._kill_these([self._dispatcher()])

    def _kill_two(self) -> None:
        self._kill_these([self._dispatcher(), *self._some(1)])

    def _kill_all(self) -> None:
        self._kill_these(self._some(HOSTS))

    def _kill_these(self, hosts: list[Host]) -> None:
        once = list(dict.fromkeys(hosts))
        self._scene.kill(*once)
        for host in once:
            self._wait(0.0, 3.0)
            self._scene.start(host)

    def _stop(self) -> None:
        host = self._draw.choice([self._dispatcher(), *self._some(1)])
        self._scene.stop(host)
        self._scene.start(host)

    def _freeze(self) -> None:
        host = self._draw.choice([self._dispatcher(), *self._some(1)])
        self._scene.freeze(host)
        self._wait(0.3, 6.0)
        self._scene.thaw(host)

    def _cut(self) -> None:
        host = self._draw.choice([self._dispatcher(), *self._some(1)])
        self._scene.cut(host)
        self._wait(0.5, 8.0)
        self._scene.lab.heal(host)

    def _split(self) -> None:
        mixed = self._some(HOSTS)
        size = self._draw.randint(1, HOSTS - 1)
        self._scene.split(mixed[:size], mixed[size:])
        self._wait(1.0, 8.0)
        self._scene.lab.join()

    def _misroute(self) -> None:
        host, peer = self._some(2)
        self._scene.suspects |= {host.name, peer.name}
        self._scene.lab.misroute(host, peer)
        self._wait(1.0, 8.0)
        self._scene.lab.end_misroute(host, peer)

    def _dispatcher(self) -> Host:
        """Return the dispatcher if one is known, else any host."""
        names = [self._scene.named(host) for host in self._some(HOSTS)]
        known = [host for host in names if host is not None]
        return known[0] if known else self._some(1)[0]

    def _some(self, many: int) -> list[Host]:
        return self._draw.sample(self._scene.hosts, many)

    def _wait(self, low_s: float, high_s: float) -> None:
        threading.Event().wait(self._draw.uniform(low_s, high_s))


def test_random_faults_lose_no_accepted_task(
    make_lab: MakeLab,
) -> None:
    """No accepted task is lost, without outcome, or wrong."""
    print(f"random faults: {DURATION_S:.0f} s, seed {SEED}")
    scene = Scene("random-faults", make_lab(HOSTS)).form()
    load = scene.load(pace=Pace(clients=4, readers=2, pause_s=0.2))
    faults = RandomFaults(scene, SEED)
    until_s = time.monotonic() + DURATION_S
    while time.monotonic() < until_s:
        faults.cause_one()
    scene.await_mesh(within_s=120.0)
    scene.await_flow(load)

    scene.figures["faults"] = faults.count
    scene.conclude()
