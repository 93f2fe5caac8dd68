"""The rules of the mesh, pure: events and a time go in, effects come out.

Four rules hold for every module of this folder:

1. No input or output, no clock, no dice, no log: what a rule needs arrives in the
   event, and what it wants done leaves as an effect.
2. Values are frozen; each state machine owns its own mutable state and nobody else's.
3. The same events in the same order give the same effects, under any hash seed.
4. What a peer does wrong is a value to handle, never an exception; a broken
   invariant of our own is an `assert`.
"""
