"""Health of this node: checks of each request, and samples of load and disk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from octaskly.config.agent import AgentConfig
from octaskly.core.events import ApiChanged, DiskChanged, LoadSampled
from octaskly.core.model.nodes import LoadSample
from octaskly.errors import NotAMember, StoreFull
from octaskly.ports.store import Clock
from octaskly.store import Store
from octaskly.system.machine_stats import LoadSampler


def _no_reason() -> None:
    """Return no reason."""


@dataclass(frozen=True, slots=True)
class HealthChecks:
    """Checks that run at each request."""

    write_failure: Callable[[], str | None]  #: why the log cannot be written, or None
    has_disk_room: Callable[[], bool]  #: True if the disk has room for the log
    lost_membership_reason: Callable[[], str | None] = _no_reason
    """Why this node is no longer a member, and how it can join again; or None."""
    warnings: tuple[str, ...] = ()
    """Problems of this node that do not stop it from serving; they are public."""

    def failure_reason(self) -> str | None:
        """Return why this node cannot serve, or None if it can."""
        return self.write_failure() or self.lost_membership_reason()

    def require_membership(self) -> None:
        """Raise NotAMember if this node is not in the mesh any more."""
        if why := self.lost_membership_reason():
            raise NotAMember(why)

    def require_disk_room(self) -> None:
        """Raise StoreFull if the disk has no room for the log, or writes fail."""
        if self.has_disk_room():
            return
        self.require_writable_log()
        raise StoreFull(
            "the disk of the dispatcher has no space for the log",
            hint="free some space there; running tasks are not affected",
        )

    def require_writable_log(self) -> None:
        """Raise StoreFull if writes of the log fail."""
        if failure := self.write_failure():
            raise StoreFull("the dispatcher cannot write its log", hint=failure)

    def require_durable(self, done: str) -> None:
        """Raise StoreFull if writes fail, so that the change `done` is not on disk."""
        if failure := self.write_failure():
            raise StoreFull(
                f"{done}, but the disk takes no writes",
                hint=f"retry when it does: {failure}",
            )


PROBE_S: Final = 1.0  #: between two probes
FAILING_S: Final = 2.0  #: how long other nodes may be unable to forward requests


class ApiProbe:
    """Requests this node's own API while it is dispatcher, as other nodes would.

    Heartbeats travel on other connections, so they do not show that the API does not
    answer. Two probes must fail in a row: a single one fails after any stall.

    Args:
        probe: Sends one request; returns why it failed, or None.
        is_needed: Returns True while other nodes forward requests to this one.
        post: Passes an event to the core.
        clock: The machine's clocks.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[str | None]],
        is_needed: Callable[[], bool],
        post: Callable[[ApiChanged], None],
        clock: Clock,
    ) -> None:
        self._probe = probe
        self._is_needed = is_needed
        self._post = post
        self._clock = clock
        self._failed_since_s: float | None = None
        self._is_failing = False

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            await asyncio.sleep(PROBE_S)
            if self._is_needed() or self._is_failing:
                await self.check()
            else:
                self._failed_since_s = None

    async def check(self) -> None:
        """Probe once, and report a change to the core."""
        started_s = self._clock.now().mono_s
        reason = await self._probe()
        if reason is None:
            self._failed_since_s = None
        elif self._failed_since_s is None:
            self._failed_since_s = started_s
            return
        elif self._clock.now().mono_s - self._failed_since_s < FAILING_S:
            return
        is_failing = reason is not None
        if is_failing != self._is_failing:
            self._is_failing = is_failing
            self._post(ApiChanged(is_failing, reason or ""))


class MachineMonitor:
    """Samples the load and the disk of this machine when it is called."""

    def __init__(self, store: Store, config: AgentConfig) -> None:
        self._store = store
        self._sampler = LoadSampler(config.paths.state)
        self.load: LoadSample = self._sampler.sample()
        self._is_disk_failing = False

    def sample_load(self, *, are_launchers_failing: bool) -> LoadSampled:
        """Take a sample of the load."""
        # Keep the previous sample if no file descriptor is free.
        with contextlib.suppress(OSError):
            self.load = self._sampler.sample()
        return LoadSampled(self.load, are_launchers_failing)

    def check_disk(self) -> DiskChanged | None:
        """Return whether the log can be written, or None if that has not changed."""
        why = self._store.shortage_reason()
        is_failing = why is not None
        if is_failing == self._is_disk_failing:
            return None
        self._is_disk_failing = is_failing
        return DiskChanged(is_failing, why or "")
