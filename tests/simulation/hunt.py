"""Runs many seeds on all available cores: `python -m tests.simulation.hunt 9999`."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from inspect import signature
from itertools import repeat

from tests.simulation.kinds import (
    aging,
    failing,
    failovers,
    gaps,
    holdings,
    partly_linked,
    ranges,
    snapshots,
    splits,
    tormented,
)
from tests.simulation.world import World

BLOCK = 20  #: seeds that one process takes at a time
GARBAGE = 200_000  #: new objects between two garbage collections
SEED_MAX = 1 << 31


def _is_kind(name: str, made: object) -> bool:
    """Return True if it runs a world and needs only a seed."""
    if not name.startswith("run_") or not callable(made):
        return False
    first, *others = signature(made).parameters.values()
    return first.name == "seed" and all(one.default is not one.empty for one in others)


RUNS: dict[str, Callable[[int], World]] = {
    name.removeprefix("run_"): made
    for module in (
        aging,
        failing,
        failovers,
        gaps,
        holdings,
        partly_linked,
        ranges,
        snapshots,
        splits,
        tormented,
    )
    for name, made in vars(module).items()
    if _is_kind(name, made)
}
KINDS = sorted(RUNS)


def run_of(kind: str) -> Callable[[int], World]:
    """Return the function that runs a world of that kind."""
    return RUNS[kind]


def failures(
    seeds: range, kind: str = "seed", processes: int | None = None
) -> Iterator[str]:
    """Run seeds side by side; yield each failure with the seed that repeats it."""
    processes = processes or len(os.sched_getaffinity(0))
    blocks = [seeds[i : i + BLOCK] for i in range(0, len(seeds), BLOCK)]
    # The same on all versions of Python.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, context, initializer=_collect_less_garbage
    ) as pool:
        for found in pool.map(_failures_in, blocks, repeat(kind)):
            yield from found


def _collect_less_garbage() -> None:
    """Spare collections of garbage, which would find little beside the last world."""
    gc.freeze()  # What is imported stays.
    gc.set_threshold(GARBAGE)


def _failures_in(seeds: range, kind: str) -> list[str]:
    found = []
    for seed in seeds:
        try:
            run_of(kind)(seed)
        except AssertionError as error:
            found.append(f"{kind} {seed}: {error}")
    return found


def asked(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.hunt",
        description="Run seeds of the simulation side by side; say which ones fail.",
    )
    parser.add_argument("count", type=int, help="how many seeds")
    parser.add_argument(
        "kind",
        nargs="?",
        default="seed",
        choices=KINDS,
        metavar="KIND",
        help=f"of the world: {', '.join(KINDS)} (seed)",
    )
    parser.add_argument(
        "--first", type=int, metavar="SEED", help="where to begin (a random one)"
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="(one for each core it may use)"
    )
    return parser.parse_args(words)


def main() -> None:
    """Run the seeds that the arguments name."""
    said = asked()
    first = random.randrange(SEED_MAX) if said.first is None else said.first
    seeds = range(first, first + said.count)
    print(f"{said.kind} {first} to {seeds.stop - 1}", flush=True)
    failed = False
    for failure in failures(seeds, said.kind, said.processes):
        failed = True
        print(failure, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
