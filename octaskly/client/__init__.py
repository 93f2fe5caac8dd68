"""Clients of a mesh: `Client` and `AsyncClient` for programs, `Session` for commands.

All three run the same flows.
"""

from octaskly.client.command_session import Session
from octaskly.client.errors import (
    NoAnswer,
    Refused,
    ReplyLost,
    SeveralAgents,
    Unreachable,
)
from octaskly.client.flows.rest_calls import Response
from octaskly.client.local_agents import find_agent_socket, find_local_agents

__all__ = [
    "NoAnswer",
    "Refused",
    "ReplyLost",
    "Response",
    "Session",
    "SeveralAgents",
    "Unreachable",
    "find_agent_socket",
    "find_local_agents",
]
