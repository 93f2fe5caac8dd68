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
    from octaskly.client.asked import (
        Asked as Asked,
    )
    from octaskly.client.asked import (
        Limits as Limits,
    )
    from octaskly.client.asked import (
        Requires as Requires,
    )
    from octaskly.client.blocking import (
        Client as Client,
    )
    from octaskly.client.errors import (
        Closed as Closed,
    )
    from octaskly.client.errors import (
        Conflict as Conflict,
    )
    from octaskly.client.errors import (
        Forbidden as Forbidden,
    )
    from octaskly.client.errors import (
        Invalid as Invalid,
    )
    from octaskly.client.errors import (
        NoDispatcher as NoDispatcher,
    )
    from octaskly.client.errors import (
        NotFound as NotFound,
    )
    from octaskly.client.errors import (
        NotOctaskly as NotOctaskly,
    )
    from octaskly.client.errors import (
        Refused as Refused,
    )
    from octaskly.client.errors import (
        ReplyLost as ReplyLost,
    )
    from octaskly.client.errors import (
        SeveralAgents as SeveralAgents,
    )
    from octaskly.client.errors import (
        TaskFailed as TaskFailed,
    )
    from octaskly.client.errors import (
        TimedOut as TimedOut,
    )
    from octaskly.client.errors import (
        TooMany as TooMany,
    )
    from octaskly.client.errors import (
        Unauthorized as Unauthorized,
    )
    from octaskly.client.errors import (
        Unavailable as Unavailable,
    )
    from octaskly.client.errors import (
        Unreachable as Unreachable,
    )
    from octaskly.client.records import (
        Draft as Draft,
    )
    from octaskly.client.records import (
        Task as Task,
    )
    from octaskly.errors import (
        ConfigError as ConfigError,
    )
    from octaskly.errors import (
        MeshError as MeshError,
    )
    from octaskly.errors import (
        OctasklyError as OctasklyError,
    )
    from octaskly.errors import (
        PermissionDenied as PermissionDenied,
    )

__version__ = "0.1.0"

# Imported when they are first used: the command line and the agent need none of them.
_HOMES = {
    "octaskly.client.asked": ("Asked", "Limits", "Requires"),
    "octaskly.client.blocking": ("Client",),
    "octaskly.client.errors": (
        *("Closed", "Conflict", "Forbidden", "Invalid", "NoDispatcher", "NotFound"),
        *("NotOctaskly", "Refused", "ReplyLost", "SeveralAgents", "TaskFailed"),
        *("TimedOut", "TooMany", "Unauthorized", "Unavailable", "Unreachable"),
    ),
    "octaskly.client.records": ("Draft", "Task"),
    "octaskly.errors": (
        *("ConfigError", "MeshError", "OctasklyError", "PermissionDenied"),
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

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
