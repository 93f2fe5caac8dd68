"""Counts primes on all machines of the mesh: functions, and no commands.

OCTASKLY_TOKEN=$(octaskly token create --role client) python spread_calls.py
"""

import math
import os

import octaskly

LIMIT = 200_000
STEP = 25_000


def count_primes(begin: int) -> int:
    """Return how many primes there are in one part."""
    numbers = range(max(begin, 2), begin + STEP)
    return sum(all(n % d for d in range(2, math.isqrt(n) + 1)) for n in numbers)


def whereabouts() -> str:
    """Return the name of the node that runs this."""
    return os.environ["OCTASKLY_NODE"]


with octaskly.Executor() as executor:
    print("the first call runs on", executor.submit(whereabouts).result())
    counts = executor.map(count_primes, range(0, LIMIT, STEP))
    print(f"{sum(counts)} primes below {LIMIT}")
