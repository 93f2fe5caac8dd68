"""The synchronous client: what the command line and scripts use to talk to a node.

    with Client.at_url("http://localhost:3000", token=token) as client:
        [task] = client.submit([Draft(command="hostname")])
        print(client.task(task.id, wait_s=60).stdout)

It speaks HTTP through the local socket of an agent (no token needed) or to a URL
with a token. What the fields mean is said in the REST reference.
"""

from octaskly.client.calls import Reply
from octaskly.client.errors import Refused, ReplyLost, SeveralAgents, Unreachable
from octaskly.client.places import agents_here, local_socket
from octaskly.client.records import (
    FINAL,
    Checkup,
    Draft,
    Explanation,
    Failover,
    Invite,
    Load,
    Members,
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
    "Checkup",
    "Client",
    "Draft",
    "Event",
    "Explanation",
    "Failover",
    "Invite",
    "Load",
    "Members",
    "Membership",
    "MeshState",
    "NodeInfo",
    "NodePage",
    "Output",
    "Reach",
    "Refused",
    "Reply",
    "ReplyLost",
    "Request",
    "RequestPage",
    "SeveralAgents",
    "Standby",
    "Task",
    "TaskPage",
    "Unreachable",
    "agents_here",
    "local_socket",
]
