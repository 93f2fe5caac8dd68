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
from octaskly.client.flows.calls import Response
from octaskly.client.local_agents import find_agent_socket, find_local_agents
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
    "ReplyLost",
    "Request",
    "RequestPage",
    "Response",
    "Session",
    "SeveralAgents",
    "Standby",
    "Task",
    "TaskPage",
    "Unreachable",
    "find_agent_socket",
    "find_local_agents",
]
