"""The pure core of a node: it takes events and a time, and returns effects.

Four rules hold for every module of this package:

1. No I/O, clock, randomness or logging. All input arrives in events; all actions
   leave as effects.
2. Values are frozen. Each component changes only its own state.
3. The same events in the same order give the same effects, under any hash seed.
4. A peer's mistake is a value to handle, never an exception. A broken invariant of
   our own is an `assert`.
"""
