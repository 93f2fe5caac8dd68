"""What few tasks ask for beyond a command, a timeout and files.

Owns the shape of these wishes alone: who may ask what is checked by the API, and what
is done about them by the queue (`requires`), the runner (surroundings, limits) and the
dispatcher. A task that asks for nothing has no `TaskOptions` at all, so the many that
are plain stay small.
"""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass, replace
from hashlib import blake2b

Pairs = tuple[tuple[str, str], ...]
"""Names with their values, ordered by name, each name once."""

PAIR_CHARS = 8  #: of two names in a message, beyond their characters, roughly
CHAR_BYTES = 4  #: most bytes of one character
ITEM_BYTES = 6  #: of an item of an array in a message, beyond its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What a node must have before it gets the task, and what it sets aside for it."""

    labels: Pairs = ()  #: that the node has, with these values
    node: str = ""  #: name or id of the only node that will do
    os: str = ""  #: as `linux`
    arch: str = ""  #: as `x86_64`
    cpus: int = 0  #: slots that the task holds; 0: one
    memory_mb: int = 0
    gpus: int = 0

    @property
    def slots(self) -> int:
        """How many slots the task holds."""
        return max(self.cpus, 1)

    @property
    def needs_exclusive_resources(self) -> bool:
        """Whether it takes more of its node than one slot, so never waits there."""
        return self.cpus > 1 or self.memory_mb > 0 or self.gpus > 0

    @property
    def shape(self) -> int:
        """What is the same for all that ask for the same; 0: nothing is asked for.

        It is stored, so another version may find another one for the same needs: then
        they wait in two lanes instead of one.
        """
        plain = replace(self, cpus=0) if self.cpus == 1 else self
        if plain == NO_REQUIREMENTS:
            return 0
        digest = blake2b(json.dumps(astuple(plain)).encode(), digest_size=8).digest()
        return int.from_bytes(digest) >> 1 or 1


NO_REQUIREMENTS = Requirements()
"""Of a task that any node can run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimits:
    """What a task may take at most; 0: no bound of its own."""

    memory_mb: int = 0
    cpu_s: int = 0  #: processor time of its processes
    file_mb: int = 0  #: size of any file that it writes
    processes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When a task that ended or was lost is tried again."""

    retries: int = 0  #: how many attempts may follow one that failed
    on_failure: bool = True  #: any failure counts; else only `codes`
    codes: tuple[int, ...] = ()  #: exit codes that are tried again, ordered
    on_lost: bool = True  #: false: an attempt that may have run is never repeated


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """Which members a task stands for that is an array."""

    count: int  #: of members
    first: int = 0  #: number of the first member
    step: int = 1  #: from one number to the next
    has_items: bool = False
    items: tuple[str, ...] = ()
    """What each member is given, where that is not its number; lists leave it out."""
    max_fails: int | None = None  #: after more failures no other member begins

    @property
    def items_bytes(self) -> int:
        """How many bytes the items take in a message."""
        return len("".join(self.items).encode()) + ITEM_BYTES * len(self.items)

    def number(self, position: int) -> int:
        """Return the number of the member at a position, from 0."""
        return self.first + position * self.step

    def position(self, number: int) -> int | None:
        """Return the position of the member with a number; None: there is none."""
        position, rest = divmod(number - self.first, self.step)
        return position if not rest and 0 <= position < self.count else None

    def item(self, position: int) -> str:
        """Return what the member at a position is given."""
        return self.items[position] if self.items else str(self.number(position))


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadedFile:
    """A file that a client left at a node, for tasks to find in their folder."""

    path: str  #: in the folder of its own that the attempt has
    sha256: str  #: of its bytes, in hexadecimal: by that it is known
    node: str  #: name or id of the node that has it


DEPENDENCY_ENDS = ("success", "failure", "any")
"""Of tasks that others come after; the log knows them by their places here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """The tasks that must have ended before, and how."""

    tasks: tuple[str, ...]  #: as the log calls them
    end: str = "success"  #: of `DEPENDENCY_ENDS`: that of each task that will do


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What a task asks for besides its command."""

    name: str = ""  #: for people, not unique
    labels: Pairs = ()  #: of the task, for people and programs
    env: Pairs = ()  #: added to the environment
    cwd: str = ""  #: absolute, or below the worker directory; empty: that itself
    stdin: bytes = b""
    is_scratch: bool = False  #: it runs in a fresh folder of its own
    grace_s: int | None = None  #: from SIGTERM to SIGKILL; None: as the node has it
    requires: Requirements | None = None
    limits: TaskLimits | None = None
    retry: Retry | None = None
    retry_of: str = ""  #: name of the ended task that this one repeats
    array: ArraySpec | None = None
    notify_url: str = ""  #: told of the end of the task
    after: After | None = None
    files: tuple[UploadedFile, ...] = ()  #: for the folder of its own

    @property
    def chars(self) -> int:
        """How many characters and bytes it has, roughly: for the size of messages."""
        pairs = self.labels + self.env
        if self.requires is not None:
            pairs += self.requires.labels
        return (
            sum(len(name) + len(value) + PAIR_CHARS for name, value in pairs)
            + len(self.name)
            + len(self.cwd)
            + len(self.notify_url)
            + len(self.stdin)
            + (0 if self.array is None else self.array.items_bytes // CHAR_BYTES)
            + len(self.retry_of)
            + sum(map(len, self.after.tasks if self.after else ()))
            + sum(len(f.path) + len(f.sha256) + len(f.node) for f in self.files)
        )


def requires_of(options: TaskOptions | None) -> Requirements | None:
    """Return what a task asks of its node."""
    return None if options is None else options.requires


def slots_of(options: TaskOptions | None) -> int:
    """Return how many slots a task holds while it runs."""
    if options is None or options.requires is None:
        return 1
    return options.requires.slots


def shape_of(options: TaskOptions | None) -> int:
    """Return the lane in which a task waits: tasks of one shape fit the same nodes."""
    if options is None or options.requires is None:
        return 0
    return options.requires.shape
