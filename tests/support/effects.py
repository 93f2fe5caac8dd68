"""Filters for the effects of a step."""

from __future__ import annotations

from collections.abc import Iterable

from octaskly.core.effects import Effect, LogLine


def note_events(effects: Iterable[Effect]) -> list[str]:
    """Return the events of the notes, in order."""
    return [effect.event for effect in effects if isinstance(effect, LogLine)]
