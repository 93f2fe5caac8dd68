"""Values that are made by the thousand: frozen for who writes code, cheap to make.

A frozen dataclass is filled field by field through `object.__setattr__`, which takes
three times as long as plain assignment; and to make such a class takes half as long
again, of which an agent's start has a hundred. So what is made several times for each
task, and what there is by the dozen, is frozen in the eyes of the type checker alone,
which sees all of this program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:
    from dataclasses import dataclass

    def value(*, frozen: bool, **options: Any) -> Any:
        """Return a decorator as for a frozen dataclass, equal and hashed alike."""
        assert frozen
        return dataclass(unsafe_hash=True, **options)


__all__ = ["value"]
