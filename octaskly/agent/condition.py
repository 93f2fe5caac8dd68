"""How this machine is: what the core is told of its load and of its disk."""

from __future__ import annotations

import contextlib

from octaskly.core.events import DiskChanged, LoadSampled
from octaskly.core.model import LoadSample
from octaskly.stats import LoadSampler
from octaskly.store import Store


class Condition:
    """Looks at the machine; the caller says when, and hands on what is found."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sampler = LoadSampler()
        self.load: LoadSample = self._sampler.sample()
        self._is_disk_failing = False

    def sampled(self, *, are_launchers_failing: bool) -> LoadSampled:
        """Take a sample of the load."""
        # Without a descriptor to spare, the sample before is good enough.
        with contextlib.suppress(OSError):
            self.load = self._sampler.sample()
        return LoadSampled(self.load, are_launchers_failing)

    def disk_changed(self) -> DiskChanged | None:
        """Return whether the disk takes the log, if that is new."""
        why = self._store.shortage()
        is_failing = why is not None
        if is_failing == self._is_disk_failing:
            return None
        self._is_disk_failing = is_failing
        return DiskChanged(is_failing, why or "")
