"""Runs many seeds on all cores it may use: `python -m tests.simulation.hunt 9999`."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.faults import run_seed

BLOCK = 20  #: seeds that one process takes at a time
SEED_MAX = 1 << 31


def failures(seeds: range) -> Iterator[str]:
    """Run seeds side by side; yield what went wrong, with the seed that repeats it."""
    blocks = [seeds[i : i + BLOCK] for i in range(0, len(seeds), BLOCK)]
    context = multiprocessing.get_context("spawn")  # Alike on all Pythons.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        for found in pool.map(_failures_in, blocks):
            yield from found


def _failures_in(seeds: range) -> list[str]:
    found = []
    for seed in seeds:
        try:
            run_seed(seed)
        except AssertionError as error:
            found.append(f"seed {seed}: {error}")
    return found


def main() -> None:
    """Run as many seeds as the argument says, from a random one on."""
    count = int(sys.argv[1])
    first = random.randrange(SEED_MAX)
    print(f"seeds {first} to {first + count - 1}", flush=True)
    failed = False
    for failure in failures(range(first, first + count)):
        failed = True
        print(failure, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
