"""The durable store of a node: log, tasks, results and counters in one SQLite file.

`writing` has the single writer thread, `reading` the queries, and `tables` the schema
and the database file.
"""

from octaskly.store.store import Store
from octaskly.store.tables.database import move_aside

__all__ = ["Store", "move_aside"]
