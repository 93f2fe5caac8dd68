"""The synchronous client: what the command line and scripts use to talk to a node.

    with Client.at_url("http://localhost:3000", token=token) as client:
        [task] = client.submit([Draft(command="hostname")])
        print(client.task(task.id, wait_s=60).stdout)

It speaks HTTP through the local socket of an agent (no token needed) or to a URL
with a token. What the fields mean is said in the REST reference.
"""

from octaskly.client.connection import (
    ApiError,
    Reply,
    ReplyLost,
    Unreachable,
    connect_unix,
)
from octaskly.client.records import (
    FINAL,
    Checkup,
    Draft,
    Explanation,
    Failover,
    Invite,
    Membership,
    MeshState,
    NodeInfo,
    NodePage,
    Output,
    Reach,
    Request,
    RequestPage,
    Standby,
    Task,
    TaskPage,
)
from octaskly.client.session import WAIT_S_MAX, Client
from octaskly.client.streams import Event

__all__ = [
    "FINAL",
    "WAIT_S_MAX",
    "ApiError",
    "Checkup",
    "Client",
    "Draft",
    "Event",
    "Explanation",
    "Failover",
    "Invite",
    "Membership",
    "MeshState",
    "NodeInfo",
    "NodePage",
    "Output",
    "Reach",
    "Reply",
    "ReplyLost",
    "Request",
    "RequestPage",
    "Standby",
    "Task",
    "TaskPage",
    "Unreachable",
    "connect_unix",
]
