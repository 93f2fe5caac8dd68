"""`octaskly.Executor`: a `concurrent.futures` executor that runs on the mesh."""

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
