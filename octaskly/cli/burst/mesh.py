"""The mesh as burst sees it: what waits for visitors, its invites, and who came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from octaskly.cli.burst.policy import Polled, Visitor
from octaskly.client import Session
from octaskly.client.flows import rest_calls
from octaskly.client.flows.rest_calls import Call
from octaskly.rest.access import Invite, VisitorInvites
from octaskly.rest.mesh import NodeInfo, NodePage, VisitorDemand
from octaskly.rest.tasks import TaskLines

INVITES: Final = "/api/v1/invites"
DEMAND: Final = "/api/v1/stats/visitors"


@dataclass(slots=True)
class BurstMesh:
    """One burst's view of the mesh, through an agent of this machine.

    Args:
        client: A session with the agent.
        label: Label that the visitors have, as NAME=VALUE; then only tasks that require
            it count. Empty: none.
        request_s: How long an invite is valid.
        stay_s: How long a visitor may stay.
    """

    client: Session
    label: str
    request_s: int
    stay_s: int
    places: Sequence[str] = ()  #: addresses that the visitors dial, of the last invite
    _invites: dict[int, str] = field(default_factory=dict)  #: their ids, by run
    _nodes: dict[int, str] = field(default_factory=dict)  #: visitors' ids, by run
    _worked: set[int] = field(default_factory=set)

    def open_invite(self, run: int) -> str:
        """Open an invite for the visitor of a run, and return its URL, a secret."""
        body = {"ttl_s": self.request_s, "visitor": {"stay_s": self.stay_s}}
        opened = self.client.send_and_decode(
            rest_calls.post_once(INVITES, body), Invite
        )
        assert opened.id is not None
        assert opened.url is not None
        self._invites[run], self.places = opened.id, opened.places
        return opened.url

    def revoke_invite(self, run: int) -> None:
        """Revoke an invite."""
        invite = self._invites.pop(run, None)
        if invite is not None:
            self.client.send(Call("DELETE", rest_calls.resource_path(INVITES, invite)))

    def poll(self) -> Polled:
        """Return the state of the mesh."""
        demand = self.client.send_and_decode(
            Call("GET", DEMAND, {"required_label": self.label or None}), VisitorDemand
        )
        ended = self._follow_invites()
        page = self.client.send_and_decode(Call("GET", rest_calls.NODES), NodePage)
        here = {node.id: node for node in page.nodes}
        present = {
            run: here[node_id]
            for run, node_id in self._nodes.items()
            if node_id in here and here[node_id].state != "lost"
        }
        for run, node_id in self._nodes.items():
            if run not in self._worked and self._has_worked(here.get(node_id), node_id):
                self._worked.add(run)
        return Polled(
            demand.waiting,
            {run: _visitor(node) for run, node in present.items()},
            frozenset(self._worked),
            admitted=frozenset(self._nodes),
            closed=ended,
        )

    def forget(self, run: int) -> None:
        """Forget a run whose visitor has left."""
        self._invites.pop(run, None)
        self._nodes.pop(run, None)
        self._worked.discard(run)

    def _follow_invites(self) -> frozenset[int]:
        """Note which invites were used; return the runs whose invite is closed."""
        page = self.client.send_and_decode(Call("GET", INVITES), VisitorInvites)
        listed = {invite.id: invite for invite in page.invites}
        closed = set()
        for run, invite_id in self._invites.items():
            if run in self._nodes:
                continue
            invite = listed.get(invite_id)
            if invite is None or invite.state in ("expired", "revoked"):
                closed.add(run)  # The agent may have started anew.
            elif invite.node is not None:
                self._nodes[run] = invite.node
        return frozenset(closed)

    def _has_worked(self, node: NodeInfo | None, node_id: str) -> bool:
        """Return True if a visitor, present or gone, was assigned a task."""
        if node is not None and node.running:
            return True
        call = Call("GET", rest_calls.TASKS, {"worker_id": node_id, "limit": 1})
        return bool(self.client.send_and_decode(call, TaskLines).tasks)


def _visitor(node: NodeInfo) -> Visitor:
    return Visitor(name=node.name, slots=node.slots, leaves_at=node.leaves_at or "")
