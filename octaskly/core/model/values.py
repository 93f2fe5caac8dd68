"""Values that are made by the thousand: frozen for the type checker, cheap to make.

A frozen dataclass is filled field by field through `object.__setattr__`, which takes
three times as long as plain assignment. Making the class itself takes half as long
again, and an agent makes a hundred of them when it starts. So classes of which several
values are made for each task, and those that there are by the dozen, are frozen in the
eyes of the type checker alone, which sees all of this program.

What is made for each task gets its fields by place: by names, Python makes a dictionary
of them first, which takes three times as long again.
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
