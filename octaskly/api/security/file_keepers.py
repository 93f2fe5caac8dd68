"""Keepers of files: the subjects that sent a file to this node, or asked for it.

Clients that send equal files share one. A release by one of them must not take it from
the others, so the file is released with its last keeper. The table is in memory: if a
file was here before the agent started, it has keepers that are not known, and only an
admin releases it. Otherwise its protection ends an hour after its last use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from octaskly.ports.tokens import Principal

FILES_MAX: Final = 32_768  #: in memory; the keepers of the oldest are forgotten
KEEPERS_MAX: Final = 16  #: of one file; any more are not known by name
UNKNOWN: Final = ""  #: no subject has this name


class FileKeepers:
    """The keepers of each file, by its SHA-256."""

    def __init__(self) -> None:
        self._keepers: dict[str, tuple[str, ...]] = {}

    def add(self, subject: str, names: Iterable[str], *, are_new: bool = False) -> None:
        """Record that a subject needs these files.

        Args:
            subject: The subject.
            names: The SHA-256 of each file.
            are_new: True if the files were not stored here before, so have no keeper.
        """
        for name in names:
            keepers = self._keepers.pop(name, () if are_new else (UNKNOWN,))
            if subject not in keepers:
                keepers += (subject if len(keepers) < KEEPERS_MAX else UNKNOWN,)
            self._keepers[name] = keepers[: KEEPERS_MAX + 1]
            if len(self._keepers) > FILES_MAX:
                del self._keepers[next(iter(self._keepers))]

    def release(self, principal: Principal, name: str) -> bool:
        """Remove a keeper of a file; return True if it has no keeper left.

        An admin that is no keeper releases it for all.
        """
        keepers = self._keepers.get(name, (UNKNOWN,))
        if principal.subject in keepers:
            left = tuple(each for each in keepers if each != principal.subject)
        elif principal.is_admin:
            left = ()
        else:
            return False
        if left:
            self._keepers[name] = left
            return False
        self._keepers.pop(name, None)
        return True
