"""Task options: requirements, limits, retries, arrays, dependencies and environment.

This module only defines the values. The API checks them. The queue applies the
requirements, the runner the environment and limits, the dispatcher the rest. A task
without options has no `TaskOptions`, so the many plain tasks stay small.
"""

from __future__ import annotations

from enum import IntEnum
from hashlib import blake2b, sha256
from typing import Annotated, Literal, NamedTuple, get_args

from msgspec import Meta, Struct, json
from msgspec.structs import replace

from octaskly.core.model.field_types import Amount, Blob, Count, Int, Text, Word

Pairs = Annotated[tuple[tuple[Text, Text], ...], Meta(max_length=1 << 10)]
"""Names and values, ordered by name, each name once."""

PAIR_CHARS = 8  #: overhead of a pair in a message, roughly
CHAR_BYTES = 4  #: most bytes of one character
ITEM_BYTES = 6  #: overhead of an array's item in a message
OUTPUTS_OF_MAX = 64  #: tasks whose outputs one task gets
TREE_FOLDERS_MAX = 8  #: that a task names of its tree
TREE_FOLDER_CHARS_MAX = 128  #: so that it is a `Word` even with a digest in it
ITEMS_MAX = 1 << 18  #: per array; in memory, items take 20 times their encoded size


class VisitorRule(IntEnum):
    """The rule of a task for visitors."""

    UNSET = 0  #: neither the submitter nor the mesh has allowed visitors
    ALLOWED = 1
    HAS_ENV = 2  #: allowed, but its variables are not, so it goes to no visitor
    REFUSED = 3  #: the submitter forbids it, whatever the mesh allows


class Requirements(Struct, frozen=True, gc=False, array_like=True, kw_only=True):
    """Requirements on a task's node, and the resources that it reserves there."""

    labels: Pairs = ()  #: labels and values that the node must have
    node: Word = ""  #: name or id of the only node that may run the task
    os: Word = ""  #: for example `linux`
    arch: Word = ""  #: for example `x86_64`
    cpus: Amount = 0  #: slots that the task holds; 0 means one
    memory_mb: Amount = 0
    gpus: Amount = 0
    python: Word = ""  #: minor version of Python for a call, for example `3.13`
    visitors: VisitorRule = VisitorRule.UNSET
    visitor_s: Amount = 0
    """Seconds that a visitor must have left: of the task's time limit, or as asked."""

    @property
    def slots(self) -> int:
        """Number of slots that the task holds."""
        return max(self.cpus, 1)

    @property
    def needs_exclusive_resources(self) -> bool:
        """Return True if the task reserves more than one slot.

        A node gets such a task only when the resources are free, never as prefetch.
        """
        return self.cpus > 1 or self.memory_mb > 0 or self.gpus > 0

    @property
    def shape(self) -> int:
        """Digest of the requirements, equal for equal requirements; 0 without any.

        The store keeps it. If another version of the program computes another digest,
        tasks with equal requirements wait in two lanes instead of one.
        """
        plain = replace(self, cpus=0) if self.cpus == 1 else self
        if plain == NO_REQUIREMENTS:
            return 0
        digest = blake2b(json.encode(plain), digest_size=8).digest()
        return int.from_bytes(digest) >> 1 or 1


NO_REQUIREMENTS = Requirements()
"""Requirements of a task that any node can run."""


class TaskLimits(Struct, frozen=True, gc=False, array_like=True, kw_only=True):
    """Resource limits of a task; 0 means no limit of its own."""

    memory_mb: Amount = 0
    cpu_s: Amount = 0  #: processor time of its processes
    file_mb: Amount = 0  #: size of each file that it writes
    processes: Amount = 0


class Retry(Struct, frozen=True, gc=False, array_like=True, kw_only=True):
    """Retry rule for attempts that failed or were lost."""

    retries: Amount = 0  #: number of failed attempts that are retried
    on_failure: bool = True  #: retry after any failure; else only after `codes`
    codes: Annotated[tuple[Int, ...], Meta(max_length=256)] = ()
    """Exit codes that are retried, in order."""
    on_lost: bool = True  #: if false, an attempt that may have run is never repeated


class ArraySpec(Struct, frozen=True, gc=False, array_like=True, kw_only=True):
    """The members of an array."""

    count: Count  #: number of members
    first: Count = 0  #: number of the first member
    step: Count = 1  #: from one member's number to the next
    has_items: bool = False
    items: Annotated[tuple[Text, ...], Meta(max_length=ITEMS_MAX)] = ()
    """Item of each member, if not its number; lists of tasks leave the items out."""
    max_fails: Count | None = None  #: after more failures, no other member starts

    @property
    def items_bytes(self) -> int:
        """Size of the items in a message."""
        return len("".join(self.items).encode()) + ITEM_BYTES * len(self.items)

    def number(self, position: int) -> int:
        """Return the number of the member at a position, from 0."""
        return self.first + position * self.step

    def position(self, number: int) -> int | None:
        """Return the position of the member with this number; None if there is none."""
        position, rest = divmod(number - self.first, self.step)
        return position if not rest and 0 <= position < self.count else None

    def item(self, position: int) -> str:
        """Return the item of the member at a position; without items its number."""
        return self.items[position] if self.items else str(self.number(position))


class BlobRef(Struct, frozen=True, gc=False, array_like=True, kw_only=True):
    """A blob that a client sent to a node: a file, or the manifest of a tree."""

    sha256: Word  #: hexadecimal digest, which identifies it
    node: Word  #: name or id of a node that has it, and all contents of the tree


class InputBlob(NamedTuple):
    """A blob that tasks need, whatever else they ask for."""

    blob: BlobRef
    is_tree: bool  #: it is a manifest, and its contents are needed, too


class InputTree(BlobRef, frozen=True, array_like=True, kw_only=True):
    """The tree of a task's folder."""

    folders: Annotated[tuple[Word, ...], Meta(max_length=TREE_FOLDERS_MAX)] = ()
    """Folders of the tree whose contents the task gets together; all of it if empty.

    In those of an array, `{sha256}` stands for the SHA-256 of the member's item.
    """
    is_lent: bool = False  #: the node asks a client for what it lacks


class SameFolder(Struct, frozen=True, gc=False, array_like=True, kw_only=True):
    """A file by which a node recognises the folder in which a task must run."""

    name: Word  #: of the file, in the folder
    sha256: Word  #: hexadecimal digest of its content
    is_read_only: bool = False  #: the task does not write to the folder


End = Literal["success", "failure", "any"]
DEPENDENCY_ENDS: tuple[End, ...] = get_args(End)
"""Ends of a dependency that release a task; the log stores their positions here."""


class After(Struct, frozen=True, gc=False, array_like=True, kw_only=True):
    """Dependencies: the tasks that must end before this task runs."""

    tasks: Annotated[
        tuple[Word, ...], Meta(max_length=1 << 10)
    ]  #: their ids in the log
    end: End = "success"  #: end that each of them must have


class FreedStdin(Struct, frozen=True, gc=False, array_like=True):
    """Digest and size of a stdin that was freed when its task had ended."""

    sha256: Word  #: hexadecimal digest of the bytes
    size_bytes: Count


class TaskOptions(Struct, frozen=True, gc=False, array_like=True, kw_only=True):
    """Options of a task besides its command, timeout and files."""

    name: Word = ""  #: for people, not unique
    labels: Pairs = ()  #: of the task, for people and programs
    env: Pairs = ()  #: added to the environment
    cwd: Text = ""  #: absolute, or relative to the worker directory (the default)
    stdin: Blob = b""
    is_scratch: bool = False  #: run in a new folder of its own
    grace_s: Amount | None = None  #: from SIGTERM to SIGKILL; None: the node's setting
    requires: Requirements | None = None
    limits: TaskLimits | None = None
    retry: Retry | None = None
    retry_of: Word = ""  #: name of the ended task that this one repeats
    array: ArraySpec | None = None
    notify_url: Text = ""  #: URL that is called when the task ends
    after: After | None = None
    tree: InputTree | None = None  #: the files of the attempt's own folder
    stdin_file: BlobRef | None = None  #: instead of `stdin`, of any size
    freed_stdin: FreedStdin | None = None
    """Stands for `stdin`, which is then empty; the bytes were freed after the end."""
    same_folder: SameFolder | None = None  #: `cwd` must be the folder with this file
    outputs_of: Annotated[tuple[Word, ...], Meta(max_length=OUTPUTS_OF_MAX)] = ()
    """Ended tasks whose outputs the attempt's own folder contains: ids in the log."""
    call: Word = ""  #: shown instead of the command, such as `simulate(3, seed=7)`

    @property
    def stdin_bytes(self) -> int:
        """Size of the stdin, even if its bytes were freed."""
        freed = self.freed_stdin
        return len(self.stdin) if freed is None else freed.size_bytes

    @property
    def chars(self) -> int:
        """Number of characters and bytes, roughly, to estimate the size of messages."""
        pairs = self.labels + self.env
        if self.requires is not None:
            pairs += self.requires.labels
        chars = len(self.name) + len(self.call) + len(self.cwd) + len(self.retry_of)
        chars += len(self.notify_url) + len(self.stdin)
        # Each member of an array has its size computed, so no sums over nothing.
        for name, value in pairs:
            chars += len(name) + len(value) + PAIR_CHARS
        if self.freed_stdin is not None:
            chars += len(self.freed_stdin.sha256)
        if self.array is not None:
            chars += self.array.items_bytes // CHAR_BYTES
        if self.after is not None:
            chars += sum(map(len, self.after.tasks))
        for blob in (self.tree, self.stdin_file):
            if blob is not None:
                chars += len(blob.sha256) + len(blob.node)
        if self.tree is not None:
            chars += sum(map(len, self.tree.folders))
        if self.same_folder is not None:
            chars += len(self.same_folder.name) + len(self.same_folder.sha256)
        return chars + sum(map(len, self.outputs_of))


def requires_of(options: TaskOptions | None) -> Requirements | None:
    """Return the requirements of a task, if any."""
    return None if options is None else options.requires


def slots_of(options: TaskOptions | None) -> int:
    """Return the number of slots that a task holds while it runs."""
    if options is None or options.requires is None:
        return 1
    return options.requires.slots


def shape_of(options: TaskOptions | None) -> int:
    """Return the shape of a task, which selects its lane; equal shapes fit one node."""
    if options is None or options.requires is None:
        return 0
    return options.requires.shape


def is_stdin_freed(options: TaskOptions | None) -> bool:
    """Return True if the bytes of the stdin are gone, so the task cannot run."""
    return options is not None and options.freed_stdin is not None


def without_stdin(options: TaskOptions) -> TaskOptions:
    """Return the options with a digest instead of the bytes of stdin, if there are any.

    Options with the same stdin are equal in this form, freed or not.
    """
    if not options.stdin:
        return options
    freed = FreedStdin(sha256(options.stdin).hexdigest(), len(options.stdin))
    return replace(options, stdin=b"", freed_stdin=freed)


def are_equal_options(a: TaskOptions | None, b: TaskOptions | None) -> bool:
    """Return True if the options are equal, wherever the files are.

    The stdin of one may have been freed.
    """
    if a is None or b is None:
        return a is b
    a, b = _without_places(a), _without_places(b)
    if is_stdin_freed(a) == is_stdin_freed(b):
        return a == b
    return without_stdin(a) == without_stdin(b)


def _without_places(options: TaskOptions) -> TaskOptions:
    """Return options whose files have their digests only.

    A client that submits a task again may send its files to another node, and does not
    lend what the node still has.
    """
    tree, stdin_file = options.tree, options.stdin_file
    return replace(
        options,
        tree=None if tree is None else replace(tree, node="", is_lent=False),
        stdin_file=None if stdin_file is None else replace(stdin_file, node=""),
    )


def with_stdin_from(options: TaskOptions, other: TaskOptions | None) -> TaskOptions:
    """Return options with the bytes of their freed stdin, if `other` has them."""
    if other is None or options.freed_stdin is None or not other.stdin:
        return options
    if without_stdin(other).freed_stdin != options.freed_stdin:
        return options
    return replace(options, stdin=other.stdin, freed_stdin=None)
