"""A busy mesh with a task in every state, for every view."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from tests.support.agents import TASKS, Agent, finished, meshed, submit, until

NAMES = ("attic", "desk", "garage")
SLOTS = 4
PROGRAMS = {
    "render": 'echo "Saved: frames/$2.png"; sleep "${SECONDS_LONG:-0.3}"',
    "encode": 'echo "encode: $1: no such file" >&2; exit 3',
    "train": r"""
for epoch in 1 2 3 4 5 6; do
    printf '\033[1mepoch %d\033[0m  loss ' "$epoch"
    printf '\033[32m0.%d\033[0m  \033[33mlr 3e-4\033[0m\n' $((90 - 9 * epoch))
done
echo 'warning: 2 images are damaged' >&2
sleep 3600""",
    "clip": """
case $1 in
    7) echo "clip 7 has no sound" >&2; exit 3;;
    [1-9]|1[0-9]|20) sleep 0.1;;
    *) sleep 3600;;
esac""",
    "thumbnail": 'case $1 in *7.jpg) echo "damaged: $1" >&2; exit 4;; esac; echo "$1"',
    "simulate": "sleep 3600",
}
CLIPS_DONE = 20
RAISES = r"""
printf 'Traceback (most recent call last):\n  File "wind.py", line 3, in simulate\n' >&2
echo 'ValueError: the seed is odd' >&2; printf '\200\005K\003.'; exit 1"""


@dataclass(frozen=True)
class Scene:
    """The mesh, its dispatcher first, and the tasks that tests look for."""

    agents: list[Agent]
    training: str  #: runs, and has written in colours
    waiting: str  #: needs a GPU, which no node has
    failed: str
    cancelled: str
    call: str  #: a Python call that raised
    atlas: str  #: left files, and lacks one
    album: str  #: an array, some of whose members failed
    done: tuple[str, ...]

    @property
    def dispatcher(self) -> Agent:
        """The dispatcher."""
        return self.agents[0]


@contextlib.contextmanager
def working(folder: Path) -> Iterator[Scene]:
    """Run three agents that have work, for the length of a block."""
    programs = folder / "bin"
    programs.mkdir()
    for name, script in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    extra = ("--slots", str(SLOTS), "--label", "room=studio", "--drain", "0")
    with (
        mock.patch.dict(os.environ, PATH=path),
        meshed(folder / "mesh", *NAMES, extra=extra) as agents,
    ):
        yield _furnished(agents)


def _furnished(agents: list[Agent]) -> Scene:
    dispatcher = agents[0]
    done = [
        submit(dispatcher, f"render scene.blend {frame:04d}", name=f"frame {frame}")
        for frame in range(1, 13)
    ]
    items = [f"photos/img-{number:03d}.jpg" for number in range(1, 31)]
    album = submit(dispatcher, "thumbnail {}", name="album", array={"items": items})
    failed = submit(dispatcher, "encode clips/intro.mov", labels={"film": "intro"})
    atlas = submit(
        dispatcher,
        "mkdir maps; thumbnail a.png > maps/a.txt; thumbnail b.png > maps/b.txt",
        name="atlas",
        workdir="scratch",
        outputs=["maps", "legend.txt"],
    )
    call = submit(dispatcher, RAISES, call="simulate(3, seed=7)")
    for task in (*done, album, atlas, failed, call):
        finished(dispatcher, task)
    training = submit(dispatcher, "train --epochs 6", name="train", priority=5)
    slow = {"env": {"SECONDS_LONG": "3600"}, "labels": {"film": "main"}}
    for frame in range(100, 107):
        submit(dispatcher, f"render main.blend {frame:04d}", **slow)
    clips = submit(dispatcher, "clip {}", name="clips", array={"range": "1-40"})
    until(lambda: _ended_members(dispatcher, clips) == CLIPS_DONE, "the clips")
    waiting = submit(
        dispatcher, "simulate wind-tunnel.cfg", name="wind tunnel", requires={"gpus": 1}
    )
    cancelled = submit(dispatcher, "simulate old.cfg", requires={"gpus": 1})
    dispatcher.call("DELETE", f"{TASKS}/{cancelled}")
    until(lambda: _has_written(dispatcher, training), "the training has begun")
    return Scene(
        *(agents, training, waiting, failed, cancelled, call, atlas, album),
        tuple(done),
    )


def _ended_members(agent: Agent, array: str) -> int:
    status, said = agent.call("GET", f"{TASKS}/{array}")
    if status != 200:
        return 0  # The dispatcher stood still.
    counts: dict[str, int] = said["array"]
    return counts["completed"] + counts["failed"]


def _has_written(agent: Agent, task: str) -> bool:
    _, said = agent.call("GET", f"{TASKS}/{task}")
    return bool(said["status"] == "running")
