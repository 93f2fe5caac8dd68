"""Failover on five hosts in network namespaces: how long nobody accepts a task.

The dispatcher is killed, loses its cable, or is stopped, again and again, while clients
submit through the other hosts. Where reigns change again and again, nodes bear silence
for longer; so there is time between two runs. Needs root and iproute2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from octaskly.core.election.failure_detector import (
    EPOCH_CHURN_MAX,
    EPOCH_CHURN_WINDOW_S,
)
from tests.mesh.history import Pace
from tests.mesh.lab import Host, Lab
from tests.mesh.netns import missing, wait_until
from tests.mesh.scene import FLOW_S, Scene

HOSTS = 5
PACE = Pace(clients=3, readers=0, pause_s=0.02)

Figure = tuple[str, list[float], float]  #: what, seconds of each run, goal for p95


def figures(*, runs: int) -> Iterator[Figure]:
    """Measure each way in which a dispatcher goes."""
    if (reason := missing()) is not None:
        raise FileNotFoundError(reason)
    with Lab(HOSTS) as lab:
        scene = Scene("failover", lab).form()
        for name, lose, regain, goal_s in (
            ("dispatcher killed", scene.kill, scene.start, 0.5),
            ("dispatcher unplugged", scene.cut, lab.heal, 2.5),
            ("dispatcher stopped", scene.stop, scene.start, 0.3),
        ):
            time.sleep(
                EPOCH_CHURN_WINDOW_S
            )  # What was done to the mesh before is no matter then.
            samples = [_once(scene, lose, regain) for _ in range(runs)]
            yield f"{name}: next accept", samples, goal_s


def _once(
    scene: Scene, lose: Callable[[Host], None], regain: Callable[[Host], None]
) -> float:
    began_s = time.monotonic()
    head = scene.dispatcher()
    load = scene.load(*scene.others(head), pace=PACE)
    moment_s = time.monotonic()
    lose(head)
    scene.await_flow(load)

    def is_accepted_elsewhere() -> bool:
        return any(
            operation.ended_s > moment_s and operation.dispatcher not in ("", head.name)
            for operation in tuple(scene.history.operations)
        )

    wait_until("another accepts", is_accepted_elsewhere, within_s=FLOW_S)
    load.stop()
    regain(head)
    scene.await_mesh()
    time.sleep(
        max(0.0, began_s + EPOCH_CHURN_WINDOW_S / EPOCH_CHURN_MAX - time.monotonic())
    )
    return scene.history.handed_over_s(moment_s, head.name)
