"""What few tasks ask for beyond a command, a timeout and files.

Owns the shape of these wishes alone: who may ask what is checked by the API, and what
is done about them by the queue (`requires`), the runner (surroundings, limits) and the
dispatcher. A task that asks for nothing has no `TaskOptions` at all, so the many that
are plain stay small.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct, json
from msgspec.structs import replace

from octaskly.core.model.field_types import Amount, Blob, Count, Int, Text, Word

Pairs = Annotated[tuple[tuple[Text, Text], ...], Meta(max_length=1 << 10)]
"""Names with their values, ordered by name, each name once."""

PAIR_CHARS = 8  #: of two names in a message, beyond their characters, roughly
CHAR_BYTES = 4  #: most bytes of one character
ITEM_BYTES = 6  #: of an item of an array in a message, beyond its own
ITEMS_MAX = 1 << 18  #: of an array: in memory they take 20 times as much as in a frame


class Requirements(Struct, frozen=True, array_like=True, kw_only=True):
    """What a node must have before it gets the task, and what it sets aside for it."""

    labels: Pairs = ()  #: that the node has, with these values
    node: Word = ""  #: name or id of the only node that will do
    os: Word = ""  #: as `linux`
    arch: Word = ""  #: as `x86_64`
    cpus: Amount = 0  #: slots that the task holds; 0: one
    memory_mb: Amount = 0
    gpus: Amount = 0

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
        digest = blake2b(json.encode(plain), digest_size=8).digest()
        return int.from_bytes(digest) >> 1 or 1


NO_REQUIREMENTS = Requirements()
"""Of a task that any node can run."""


class TaskLimits(Struct, frozen=True, array_like=True, kw_only=True):
    """What a task may take at most; 0: no bound of its own."""

    memory_mb: Amount = 0
    cpu_s: Amount = 0  #: processor time of its processes
    file_mb: Amount = 0  #: size of any file that it writes
    processes: Amount = 0


class Retry(Struct, frozen=True, array_like=True, kw_only=True):
    """When a task that ended or was lost is tried again."""

    retries: Amount = 0  #: how many attempts may follow one that failed
    on_failure: bool = True  #: any failure counts; else only `codes`
    codes: Annotated[tuple[Int, ...], Meta(max_length=256)] = ()
    """Exit codes that are tried again, ordered."""
    on_lost: bool = True  #: false: an attempt that may have run is never repeated


class ArraySpec(Struct, frozen=True, array_like=True, kw_only=True):
    """Which members a task stands for that is an array."""

    count: Count  #: of members
    first: Count = 0  #: number of the first member
    step: Count = 1  #: from one number to the next
    has_items: bool = False
    items: Annotated[tuple[Text, ...], Meta(max_length=ITEMS_MAX)] = ()
    """What each member is given, where that is not its number; lists leave it out."""
    max_fails: Count | None = None  #: after more failures no other member begins

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


class UploadedFile(Struct, frozen=True, array_like=True, kw_only=True):
    """A file that a client left at a node, for tasks to find in their folder."""

    path: Word  #: in the folder of its own that the attempt has
    sha256: Word  #: of its bytes, in hexadecimal: by that it is known
    node: Word  #: name or id of the node that has it


End = Literal["success", "failure", "any"]
DEPENDENCY_ENDS: tuple[End, ...] = get_args(End)
"""Of tasks that others come after; the log knows them by their places here."""


class After(Struct, frozen=True, array_like=True, kw_only=True):
    """The tasks that must have ended before, and how."""

    tasks: Annotated[
        tuple[Word, ...], Meta(max_length=1 << 10)
    ]  #: their ids in the log
    end: End = "success"  #: that of each task that will do


class TaskOptions(Struct, frozen=True, array_like=True, kw_only=True):
    """What a task asks for besides its command."""

    name: Word = ""  #: for people, not unique
    labels: Pairs = ()  #: of the task, for people and programs
    env: Pairs = ()  #: added to the environment
    cwd: Text = ""  #: absolute, or below the worker directory; empty: that itself
    stdin: Blob = b""
    is_scratch: bool = False  #: it runs in a fresh folder of its own
    grace_s: Amount | None = None  #: from SIGTERM to SIGKILL; None: as the node has it
    requires: Requirements | None = None
    limits: TaskLimits | None = None
    retry: Retry | None = None
    retry_of: Word = ""  #: name of the ended task that this one repeats
    array: ArraySpec | None = None
    notify_url: Text = ""  #: told of the end of the task
    after: After | None = None
    files: Annotated[tuple[UploadedFile, ...], Meta(max_length=256)] = ()
    """For the folder of its own."""

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
