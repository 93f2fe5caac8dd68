"""Runs many seeds on all cores it may use: `python -m tests.simulation.hunt 9999`.

Behind the number of seeds stands the kind of world, such as `unordered`: the end of the
name of what runs it, in `faults`.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

from tests.simulation.faults import run_of

BLOCK = 20  #: seeds that one process takes at a time
SEED_MAX = 1 << 31


def failures(seeds: range, kind: str = "seed") -> Iterator[str]:
    """Run seeds side by side; yield what went wrong, with the seed that repeats it."""
    blocks = [seeds[i : i + BLOCK] for i in range(0, len(seeds), BLOCK)]
    context = multiprocessing.get_context("spawn")  # Alike on all Pythons.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        for found in pool.map(_failures_in, blocks, repeat(kind)):
            yield from found


def _failures_in(seeds: range, kind: str) -> list[str]:
    found = []
    for seed in seeds:
        try:
            run_of(kind)(seed)
        except AssertionError as error:
            found.append(f"{kind} {seed}: {error}")
    return found


def main() -> None:
    """Run as many seeds as the argument says, from a random one on."""
    count, kind = int(sys.argv[1]), sys.argv[2] if sys.argv[2:] else "seed"
    first = random.randrange(SEED_MAX)
    print(f"{kind} {first} to {first + count - 1}", flush=True)
    failed = False
    for failure in failures(range(first, first + count), kind):
        failed = True
        print(failure, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
