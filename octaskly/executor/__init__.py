"""`octaskly.Executor`: the mesh as an executor of `concurrent.futures`."""

from octaskly.executor.errors import (
    BrokenCall,
    InterpreterMismatch,
    MeshLost,
    RemoteError,
    RemoteTraceback,
    ResultLost,
)
from octaskly.executor.executor import Executor

__all__ = [
    "BrokenCall",
    "Executor",
    "InterpreterMismatch",
    "MeshLost",
    "RemoteError",
    "RemoteTraceback",
    "ResultLost",
]
