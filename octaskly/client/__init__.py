"""Clients of a mesh, and what they are made of.

`blocking` and `asynchronous` have the clients of programs; `session` is what commands
use. All run the same flows.
"""

from octaskly.client.errors import (
    NoAnswer,
    Refused,
    ReplyLost,
    SeveralAgents,
    Unreachable,
)
from octaskly.client.flows.calls import Reply
from octaskly.client.local_agents import agents_here, local_socket
from octaskly.client.session import Session
from octaskly.rest.client_types import (
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

__all__ = [
    "FINAL",
    "Checkup",
    "Draft",
    "Explanation",
    "Failover",
    "Invite",
    "Load",
    "Members",
    "Membership",
    "MeshState",
    "NoAnswer",
    "NodeInfo",
    "NodePage",
    "Output",
    "Reach",
    "Refused",
    "Reply",
    "ReplyLost",
    "Request",
    "RequestPage",
    "Session",
    "SeveralAgents",
    "Standby",
    "Task",
    "TaskPage",
    "Unreachable",
    "agents_here",
    "local_socket",
]
