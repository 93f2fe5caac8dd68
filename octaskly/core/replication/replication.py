"""The dispatcher's copies: which standbys keep what this reign appends.

Everything that goes to this node's writer goes to the standbys in the same step.
Answers wait in `promises` until one of them has acknowledged what they tell.

Source: docs/explanation/replication.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from octaskly.core.effects import Append, Effect, Join, Note, Send, ServePull, Written
from octaskly.core.membership.membership import Membership
from octaskly.core.model.ids import Moment, NodeId, Reign
from octaskly.core.model.nodes import NodeState, StandbyView
from octaskly.core.model.settings import Settings
from octaskly.core.protocol.messages import Pull, Repl, ReplOk
from octaskly.core.replication.journal import Journal
from octaskly.core.replication.log_tail import Part, Tail, part_of, repl_of, size_of
from octaskly.core.replication.pending_acks import ALWAYS, NEVER, Promises, WhenSafe

STANDBYS = 2  #: electable followers that keep copies
UNACKED_BYTES_MAX = 16 << 20  #: under way to one standby, roughly

DRAINING = NodeState.DRAINING


class _Progress(Enum):
    """How far a standby has come."""

    JOINING = "joining"  #: it pulls what it lacks
    STREAMING = "streaming"  #: it is sent what is appended
    LEVEL = "level"  #: and has acknowledged, so answers wait for it


@dataclass(slots=True)
class _Copy:
    """One standby."""

    heard_s: float  #: when it last pulled or acknowledged
    progress: _Progress = _Progress.JOINING
    acked: int = 0
    unacked: deque[Part] = field(default_factory=deque)
    unacked_bytes: int = 0


class Replication:
    """Standbys, what is on its way to them, and what waits for them."""

    def __init__(
        self, settings: Settings, journal: Journal, members: Membership
    ) -> None:
        self._timing = settings.timing
        self._limits = settings.limits
        self._journal = journal
        self.members = members
        self._reign: Reign | None = None
        self._copies: dict[NodeId, _Copy] = {}
        self._slow: dict[NodeId, float] = {}
        """When a node was last given up as too slow."""
        self._tail = Tail(settings.limits)
        self._number = 0  #: of the last append that was streamed
        self._promises = Promises(journal, settings.timing.solo_s, self._holders)
        self._seen_changes = -1  #: of the members, at the last choice
        self._choice_s = NEVER  #: when a node that was slow may be chosen again

    # --- The reign.

    def begin(self, reign: Reign, now: Moment, *, is_expecting: bool) -> None:
        """Reign; with `is_expecting`, members who may be standbys are on their way."""
        self._reign = reign
        self._forget()
        self._tail.begin(self._journal.vector)
        self._number = self._journal.number
        self._promises.bare_s = now.mono_s if is_expecting else ALWAYS

    def end(self, now: Moment) -> None:
        """Reign no more; what waits is told how many copies it has, if it has any.

        A standby that was level may be about to reign without what it has not
        acknowledged: that is told as if it were slow, and not at once.
        """
        self._promises.note_copies()
        if not self._promises.is_bare:
            self._promises.bare_s = now.mono_s
        self._reign = None
        self._forget()

    def _forget(self) -> None:
        self._copies.clear()
        self._slow.clear()
        self._tail.begin({})
        self._seen_changes = -1
        self._choice_s = NEVER

    # --- What is seen of it.

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        """The standbys, the one that should succeed first."""
        copies = self._copies
        level = _Progress.LEVEL
        return tuple(
            sorted(copies, key=lambda node: copies[node].progress is not level)
        )

    @property
    def is_level(self) -> bool:
        """Whether a standby keeps up with this node."""
        return _Progress.LEVEL in [copy.progress for copy in self._copies.values()]

    @property
    def is_quiet(self) -> bool:
        """Whether no answer waits."""
        return self._promises.are_kept

    def streams_to(self, node: NodeId) -> bool:
        """Return whether this standby keeps up with what is appended."""
        copy = self._copies.get(node)
        return copy is not None and copy.progress is _Progress.LEVEL

    def level_with(self, node: NodeId) -> bool:
        """Return whether this standby has acknowledged everything."""
        copy = self._copies.get(node)
        return copy is not None and copy.acked >= self._journal.appended

    def views(self) -> tuple[StandbyView, ...]:
        """Return the standbys in order, and how far each is behind."""
        return tuple(self._view(node, self._copies[node]) for node in self.nodes)

    def _view(self, node: NodeId, copy: _Copy) -> StandbyView:
        if copy.progress is not _Progress.JOINING:
            lag = sum(part.entries for part in copy.unacked)
        else:
            held = self.members.peers[node].vector
            vector = self._journal.vector.items()
            lag = sum(max(0, seq - held.get(stream, 0)) for stream, seq in vector)
        return StandbyView(node, copy.progress is _Progress.LEVEL, lag)

    # --- Answers.

    def when_safe(self, then: WhenSafe, now: Moment) -> list[Effect]:
        """Do `then` once all that was decided so far is durable in two places."""
        return self._promises.make(then, now)

    def release(self, now: Moment) -> list[Effect]:
        """Do what waited, in order, as far as it is safe."""
        return self._promises.release(now)

    def discount(self, node: NodeId) -> None:
        """Count on a node no more that is gone, for answers of an earlier reign."""
        self._promises.discount(node)

    def _holders(self, number: int) -> frozenset[NodeId]:
        level = _Progress.LEVEL
        return frozenset(
            node
            for node, copy in self._copies.items()
            if copy.progress is level and copy.acked >= number
        )

    # --- Streaming.

    def on_written(self, append: Written, now: Moment) -> list[Effect]:
        """Send the standbys what goes to this node's own disk."""
        if self._reign is None:
            return []
        if isinstance(append, Join):
            return self._rejoin(now) if append.is_last else []
        self._number = append.number
        copies = [
            (node, copy)
            for node, copy in self._copies.items()
            if copy.progress is not _Progress.JOINING
        ]
        # It takes a while to count, and a large request is one step.
        is_counted = bool(copies) or self._tail.takes(append)
        size_bytes = size_of(append) if is_counted else 0
        self._tail.add(append, size_bytes)
        if not copies:
            return []
        part = part_of((append,), append.number, size_bytes, now)
        # The same messages for all, so that they are packed once.
        messages = self._messages(self._reign, (append,))
        return [
            effect
            for node, copy in copies
            for effect in self._stream(node, copy, part, messages, now)
        ]

    def _rejoin(self, now: Moment) -> list[Effect]:
        """Rows of a snapshot came in, which are no entries: standbys join anew."""
        self._tail.begin(self._journal.vector)
        effects: list[Effect] = []
        for node, copy in self._copies.items():
            self._fall_behind(copy, now)
            effects += self._bring_level(node, copy, now) or self._serve(node, now)
        return effects

    def _stream(
        self,
        node: NodeId,
        copy: _Copy,
        part: Part,
        messages: tuple[Repl, ...],
        now: Moment,
    ) -> list[Effect]:
        if copy.unacked_bytes + part.size_bytes > UNACKED_BYTES_MAX:
            # More would end the link. It asks for the rest at its own pace.
            self._fall_behind(copy, now)
            return self._serve(node, now)
        copy.unacked.append(part)
        copy.unacked_bytes += part.size_bytes
        return [Send(node, messages)]

    def _serve(self, node: NodeId, now: Moment) -> list[Effect]:
        """Send a standby what it lacks; it asks on by itself for the rest.

        Only what is on disk can be read, and an empty answer would end its questions.
        """
        vector = tuple(sorted(self.members.peers[node].vector.items()))
        return self._journal.when_durable(lambda _: [ServePull(node, vector)], now)

    def _fall_behind(self, copy: _Copy, now: Moment) -> None:
        """A standby has to join again."""
        copy.progress = _Progress.JOINING
        copy.heard_s = now.mono_s
        copy.unacked.clear()
        copy.unacked_bytes = 0
        if not self._promises.is_bare and not self.is_level:
            self._promises.bare_s = now.mono_s

    # --- Standbys.

    def on_pull(self, node: NodeId, message: Pull, now: Moment) -> list[Effect]:
        """A peer asks for entries: a standby may be close enough by now."""
        copy = self._copies.get(node)
        if copy is None or message.cursor is not None:
            if copy is not None:
                copy.heard_s = now.mono_s
            return [ServePull(node, message.vector, message.cursor)]
        # One that is streamed to asks only if something was lost on the way.
        self._fall_behind(copy, now)
        return self._bring_level(node, copy, now) or self._serve(node, now)

    def on_repl_ok(self, node: NodeId, message: ReplOk, now: Moment) -> list[Effect]:
        """A standby has made durable what it was sent."""
        copy = self._copies.get(node)
        reign = self._reign
        if copy is None or reign is None or message.epoch != reign.epoch:
            return []
        if message.number > self._number:
            return []  # Nobody can hold what was never sent.
        copy.heard_s = now.mono_s
        copy.acked = max(copy.acked, message.number)
        held = self.members.peers[node].vector
        while copy.unacked and copy.unacked[0].number <= copy.acked:
            part = copy.unacked.popleft()
            copy.unacked_bytes -= part.size_bytes
            for stream, seq in part.ends.items():
                # It may hold more, of a reign of its own.
                held[stream] = max(seq, held.get(stream, 0))
        effects: list[Effect] = []
        if copy.progress is _Progress.STREAMING:
            effects += self._count_on(node, copy, reign)
        return effects + self.release(now)

    def _count_on(self, node: NodeId, copy: _Copy, reign: Reign) -> list[Effect]:
        """Let answers wait for a standby from now on, and tell it where none did."""
        copy.progress = _Progress.LEVEL
        was_bare, self._promises.bare_s = self._promises.is_bare, None
        self._slow.pop(node, None)
        self.members.changed()
        note = Note("info", "standby level", (("peer", node),))
        # What it was sent until now may have been answered for without it.
        return [Send(node, self._messages(reign, ())), note] if was_bare else [note]

    def on_lost(self, node: NodeId, now: Moment, *, is_leaving: bool) -> None:
        """A follower's link is gone, and its copy with it."""
        if node in self._copies:
            self._drop(node, now.mono_s)
            if is_leaving and not self._has_candidates():
                self._promises.bare_s = ALWAYS

    def _has_candidates(self) -> bool:
        reign = self._reign
        return reign is not None and any(
            view.is_candidate for _, view in self.members.followers(reign.epoch)
        )

    def review(self, now: Moment) -> list[Effect]:
        """Replace standbys that are too slow, choose where one is missing."""
        if self._reign is None:
            return self._promises.release(now)
        effects: list[Effect] = []
        for node, copy in tuple(self._copies.items()):
            if not self.members.peers[node].is_candidate or self._is_slow(copy, now):
                first_s = copy.unacked[0].sent_s if copy.unacked else now.mono_s
                self._drop(node, first_s)
                self._slow[node] = now.mono_s
                effects.append(Note("warning", "standby slow", (("peer", node),)))
        is_due = now.mono_s >= self._choice_s
        if is_due or self.members.changes != self._seen_changes:
            self._seen_changes = self.members.changes
            effects += self._choose(now)
        return effects + self._promises.release(now)

    def deadline(self) -> float:
        """Return when `review` has something to do."""
        due_s = min(self._promises.deadline(), self._choice_s)
        for copy in self._copies.values():
            if copy.unacked:
                due_s = min(due_s, copy.unacked[0].sent_s + self._timing.slow_s)
        return due_s

    def _is_slow(self, copy: _Copy, now: Moment) -> bool:
        if copy.progress is _Progress.JOINING:
            return now.mono_s >= copy.heard_s + self._timing.sticky_s
        if not copy.unacked:
            return False
        return now.mono_s >= copy.unacked[0].sent_s + self._timing.slow_s

    def _choose(self, now: Moment) -> list[Effect]:
        """Take the best followers where standbys are missing."""
        assert self._reign is not None
        timing = self._timing
        ranked = []
        for node, view in self.members.followers(self._reign.epoch):
            slow_s = self._slow.get(node, ALWAYS)
            is_resting = now.mono_s < slow_s + timing.slow_s
            if node in self._copies or not view.is_candidate or is_resting:
                continue
            is_sticky = now.mono_s < slow_s + timing.sticky_s
            is_leaving = view.state is DRAINING
            ranked.append((is_sticky, is_leaving, view.standing(now), node))
        effects: list[Effect] = []
        for *_, node in sorted(ranked)[: max(0, STANDBYS - len(self._copies))]:
            effects += self._enlist(node, now)
        self._choice_s = NEVER
        for node, at_s in tuple(self._slow.items()):
            rested_s, forgiven_s = at_s + timing.slow_s, at_s + timing.sticky_s
            if now.mono_s >= forgiven_s or node not in self.members.peers:
                del self._slow[node]
            else:
                next_s = rested_s if now.mono_s < rested_s else forgiven_s
                self._choice_s = min(self._choice_s, next_s)
        return effects

    def _enlist(self, node: NodeId, now: Moment) -> list[Effect]:
        copy = self._copies[node] = _Copy(now.mono_s)
        self.members.note_standby(node, is_standby=True)
        return self._bring_level(node, copy, now) or self._serve(node, now)

    def _bring_level(self, node: NodeId, copy: _Copy, now: Moment) -> list[Effect]:
        """Stream to a standby if what it lacks is all in the tail."""
        missing = self._tail.beyond(self.members.peers[node].vector)
        if missing is None:
            return []
        assert self._reign is not None
        copy.progress = _Progress.STREAMING
        part = part_of(missing, self._number, sum(map(size_of, missing)), now)
        messages = self._messages(self._reign, missing)
        return self._stream(node, copy, part, messages, now)

    def _messages(self, reign: Reign, appends: Sequence[Append]) -> tuple[Repl, ...]:
        bytes_max, is_bare = self._limits.entries_bytes, self._promises.is_bare
        is_ahead = is_bare or self._journal.is_ahead
        return repl_of(reign, appends, self._number, bytes_max, is_ahead=is_ahead)

    def _drop(self, node: NodeId, since_s: float) -> None:
        """Count on a standby no more; `since_s` is when it was last of use."""
        del self._copies[node]
        self.members.note_standby(node, is_standby=False)
        if not self._promises.is_bare and not self.is_level:
            self._promises.bare_s = since_s
