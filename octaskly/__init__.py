"""Octaskly turns the machines of a LAN into one computer for shell commands.

    import octaskly

    with octaskly.Client() as mesh:
        print(mesh.run("hostname").stdout)

What is public has a name here; docs/reference/python.md tells all of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # isort: off
    from octaskly.client.flows.task_fields import (
        TaskFields as TaskFields,
        Limits as Limits,
        Requires as Requires,
    )
    from octaskly.client.async_client import AsyncClient as AsyncClient
    from octaskly.client.client import Client as Client
    from octaskly.client.errors import (
        Closed as Closed,
        Conflict as Conflict,
        Forbidden as Forbidden,
        Invalid as Invalid,
        NoAnswer as NoAnswer,
        NoDispatcher as NoDispatcher,
        NotFound as NotFound,
        NotOctaskly as NotOctaskly,
        Refused as Refused,
        ReplyLost as ReplyLost,
        SeveralAgents as SeveralAgents,
        TaskFailed as TaskFailed,
        TimedOut as TimedOut,
        TooMany as TooMany,
        Unauthorized as Unauthorized,
        Unavailable as Unavailable,
        Unreachable as Unreachable,
    )
    from octaskly.client.flows.streams import Log as Log
    from octaskly.client.flows.queries import TaskFilter as TaskFilter
    from octaskly.client.flows.sse import Event as Event
    from octaskly.errors import (
        ConfigError as ConfigError,
        MeshError as MeshError,
        OctasklyError as OctasklyError,
        PermissionDenied as PermissionDenied,
    )
    from octaskly.files.home_folder import (
        FetchError as FetchError,
        KeptFile as KeptFile,
    )
    from octaskly.files.local_tree import FileChanged as FileChanged
    from octaskly.files.manifest import ManifestError as ManifestError
    from octaskly.files.unpacker import Fetched as Fetched
    from octaskly.rest.client_types import Draft as Draft, Task as Task
    from octaskly.rest.mesh import (
        Counts as Counts,
        Database as Database,
        Epoch as Epoch,
        Failover as Failover,
        Load as Load,
        MeshDetail as MeshDetail,
        MeshState as MeshState,
        NodeInfo as NodeInfo,
        Standby as Standby,
        Stats as Stats,
        System as System,
        Workers as Workers,
    )
    from octaskly.rest.tasks import (
        Explanation as Explanation,
        Members as Members,
        Output as Output,
        QueuedAhead as QueuedAhead,
        Reason as Reason,
        Requirements as Requirements,
        ResourceLimits as ResourceLimits,
        Verdict as Verdict,
    )

    # isort: on
    from octaskly.executor import BrokenCall as BrokenCall
    from octaskly.executor import Executor as Executor
    from octaskly.executor import InterpreterMismatch as InterpreterMismatch
    from octaskly.executor import MeshLost as MeshLost
    from octaskly.executor import RemoteError as RemoteError
    from octaskly.executor import RemoteTraceback as RemoteTraceback
    from octaskly.executor import ResultLost as ResultLost

__version__ = "0.1.0"

# Imported when they are first used: the command line and the agent need none of them.
_HOMES = {
    "octaskly.client.flows.task_fields": "TaskFields Limits Requires",
    "octaskly.client.async_client": "AsyncClient",
    "octaskly.client.client": "Client",
    "octaskly.client.errors": (
        "Closed Conflict Forbidden Invalid NoAnswer NoDispatcher NotFound "
        "NotOctaskly Refused ReplyLost SeveralAgents TaskFailed TimedOut TooMany "
        "Unauthorized Unavailable Unreachable "
    ),
    "octaskly.client.flows.streams": "Log",
    "octaskly.client.flows.queries": "TaskFilter",
    "octaskly.client.flows.sse": "Event",
    "octaskly.errors": "ConfigError MeshError OctasklyError PermissionDenied",
    "octaskly.executor": (
        "BrokenCall Executor InterpreterMismatch MeshLost RemoteError "
        "RemoteTraceback ResultLost "
    ),
    "octaskly.files.home_folder": "FetchError KeptFile",
    "octaskly.files.local_tree": "FileChanged",
    "octaskly.files.manifest": "ManifestError",
    "octaskly.files.unpacker": "Fetched",
    "octaskly.rest.client_types": "Draft Task",
    "octaskly.rest.mesh": (
        "Counts Database Epoch Failover Load MeshDetail MeshState NodeInfo Standby "
        "Stats System Workers "
    ),
    "octaskly.rest.tasks": (
        "Explanation Members Output QueuedAhead Reason Requirements ResourceLimits "
        "Verdict "
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [  # noqa: PLE0604 - the names of the table
    "__version__",
    *sorted(_HOME_OF),
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module 'octaskly' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
