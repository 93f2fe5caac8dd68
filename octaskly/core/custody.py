"""What follows from the keyring for the links and the work of one node.

Owns the consequences only: `rotation` knows who has which generation.
"""

from __future__ import annotations

from octaskly.core.effects import Effect
from octaskly.core.keys import KeysChanged, KeysEvent
from octaskly.core.links import Links
from octaskly.core.machines import Machines
from octaskly.core.model import Moment


class Custody:
    """Ends the links of revoked nodes, and the work of this one if it is one."""

    def __init__(self, machines: Machines, links: Links) -> None:
        self._rotation = machines.rotation
        self._worker = machines.worker
        self._links = links
        self._candidacy = machines.candidacy
        self._election = machines.election
        self._hints = machines.members.hints
        self._dispatch, self._clerk = machines.dispatch, machines.clerk
        self._shun()
        if machines.rotation.is_revoked:
            self._candidacy.withdraw()

    def on_event(self, event: KeysEvent, now: Moment) -> list[Effect]:
        """Renew the secret, or go by the one that is there now."""
        if not isinstance(event, KeysChanged):
            return self._rotation.on_asked(event, now)
        effects = self._rotation.on_changed(event, now)
        effects += self._expel(now)
        self._rotation.let_in()
        self._shun()
        stance = self._worker.stance
        if self._rotation.is_revoked and not stance.is_revoked:
            effects += self._worker.take_stance(stance.revoked(), now)
            # It is lost to the others, who run it again.
            effects += self._worker.give_up()
            self._candidacy.withdraw()
            effects += self._election.seek("revoked", now)
        return effects

    def on_time(self, now: Moment, *, is_reigning: bool) -> list[Effect]:
        """Take the step of a rotation that is due."""
        effects = self._expel(now)
        if is_reigning:
            effects += self._rotation.on_time(now)
        if is_reigning and self._dispatch.is_accepting:
            effects += self._clerk.write(self._rotation.unwritten(), now)
        return effects

    def _shun(self) -> None:
        rotation = self._rotation
        self._hints.shun(rotation.keys.denied, shuns_all=rotation.is_revoked)

    def _expel(self, now: Moment) -> list[Effect]:
        effects: list[Effect] = []
        for peer, reason in self._rotation.unwanted(now):
            effects += self._links.expel(peer, reason, now)
        return effects
