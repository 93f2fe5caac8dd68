"""The SQLite file of a node: log, queue, results, counters.

`log` has the port, `writer` its one writing thread, `tables` the joining of facts,
`reader` the questions, `state` what a node keeps of itself, `database` the file.
"""

from octaskly.store.store import Store
from octaskly.store.tables.database import move_aside

__all__ = ["Store", "move_aside"]
