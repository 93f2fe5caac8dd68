"""The SQLite file of a node: log, queue, results, counters.

`log` has the port, `writer` its one writing thread, `tables` the joining of facts,
`reader` the questions, `state` what a node keeps of itself, `database` the file.
"""

from octaskly.store.database import move_aside
from octaskly.store.log import Store

__all__ = ["Store", "move_aside"]
