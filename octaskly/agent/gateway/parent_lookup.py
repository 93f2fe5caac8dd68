"""Dependency resolution: finds the parents of new tasks before they are accepted.

A parent is a known task or another task of the same request. The name that the client
uses is replaced by the id in the log, which is the same on both sides of a partition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from octaskly.core.log.merge import TaskRecord
from octaskly.core.model.arrays import array_of
from octaskly.core.model.drafts import TaskDraft, log_id_of
from octaskly.core.model.ids import TaskId, task_name
from octaskly.core.model.task_options import After, InputTree
from octaskly.errors import (
    CyclicTasks,
    InputsCollide,
    ParentNotFound,
    ParentTooLarge,
    TaskNotFound,
)
from octaskly.files.output_patterns import has_wildcards, prefixes
from octaskly.ports.store import TaskParts
from octaskly.store import Store

FilesOfTree = Callable[[InputTree], Mapping[str, int]]
"""Returns the files of a tree with their sizes; none if it is not here. Blocks."""

MEMBERS_MAX: Final = 1000  #: of an array whose outputs a task gets
OUTPUTS_READ_MAX: Final = 1000  #: parents in one request whose outputs are checked

FindTask = Callable[[str], Awaitable[TaskRecord]]

_NOT_FOUND = "Parent task not found"


async def resolve_parents(
    drafts: Sequence[TaskDraft],
    submitter: str,
    store: Store,
    find_task: FindTask,
) -> tuple[TaskDraft, ...]:
    """Return the drafts with the log ids of their parents.

    Raises:
        ParentNotFound: a parent does not exist, or is a member of an array.
        ParentTooLarge: the outputs of too many members are wanted.
        CyclicTasks: tasks of the request wait for each other.
        CatchingUp: a parent is unknown here, but another node may know it.
    """
    if not [draft for draft in drafts if draft.options and draft.options.after]:
        return tuple(drafts)
    own = {str(draft.id): draft for draft in drafts if draft.id is not None}
    known = await _read_parent_names(drafts, own, store, find_task)
    await _check_members(drafts, own, known, store)
    return _ParentResolver(own, known, submitter).resolve_all(drafts)


async def check_input_paths(
    drafts: Sequence[TaskDraft],
    submitter: str,
    store: Store,
    files_of: FilesOfTree,
) -> None:
    """Check that no sent file is where an output of a parent will be.

    The worker compares contents, too, and what only it knows: folders, globs, and the
    outputs of arrays.

    Raises:
        InputsCollide: the parent declares the path, and has not ended with a file of
            the same size there.
    """
    if not any(map(_gets_both, drafts)):
        return
    own = {str(log_id_of(each, submitter)): each for each in drafts if each.id}
    files: dict[InputTree, Mapping[str, int]] = {}
    outputs: dict[str, Mapping[str, int | None]] = {}
    for index, draft in enumerate(drafts):
        tree = draft.options.tree if draft.options else None
        if draft.options is None or tree is None or tree.folders:
            continue
        for place, task in enumerate(draft.options.outputs_of):
            if task not in outputs:
                if len(outputs) == OUTPUTS_READ_MAX:
                    return
                outputs[task] = await _outputs_of(task, own, store)
            if tree not in files:
                files[tree] = await asyncio.to_thread(files_of, tree)
            if (path := _find_collision(files[tree], outputs[task])) is not None:
                at = "$" if len(drafts) == 1 else f"$[{index}]"
                raise InputsCollide(
                    "Two inputs have the same path",
                    field=f"{at}.outputs_of[{place}]",
                    hint=f"{path!r} is sent along, and is an output of "
                    f"{task_name(TaskId(task))}: send it to another place, as with "
                    "--in PATH=DEST",
                )


def _gets_both(draft: TaskDraft) -> bool:
    """Return True if a task gets sent files and outputs of others."""
    options = draft.options
    return options is not None and bool(options.tree and options.outputs_of)


async def _outputs_of(
    task: str, own: Mapping[str, TaskDraft], store: Store
) -> dict[str, int | None]:
    """Return the files that a task has as outputs, with their sizes if known."""
    if (draft := own.get(task)) is not None:
        is_array = draft.options is not None and draft.options.array is not None
        return {} if is_array else dict.fromkeys(draft.outputs)
    record = await store.read_task(task, TaskParts.BRIEF)
    if record is None or record.spec is None or record.spec.array is not None:
        return {}
    if not record.state.is_final:
        return dict.fromkeys(record.spec.outputs)
    attempt = record.deciding_attempt
    kept = attempt.outcome.outputs if attempt and attempt.outcome else ()
    return {each.path: each.size_bytes for each in kept if each.size_bytes is not None}


def _find_collision(
    files: Mapping[str, int], outputs: Mapping[str, int | None]
) -> str | None:
    """Return the path of a file that is also an output, or has one below it."""
    for output, size_bytes in outputs.items():
        if has_wildcards(output):
            continue
        for path in prefixes(output):
            if path in files and not (path == output and files[path] == size_bytes):
                return path
    return None


class _ParentResolver:
    """Resolves the drafts of one request, parents first."""

    def __init__(
        self, own: Mapping[str, TaskDraft], known: Mapping[str, str], submitter: str
    ) -> None:
        self._own = own
        self._known = dict(known)
        self._submitter = submitter
        self._resolved: dict[str, TaskDraft] = {}

    def resolve_all(self, drafts: Sequence[TaskDraft]) -> tuple[TaskDraft, ...]:
        """Return all drafts in their order."""
        for name in self._own:
            self._resolve_task(name)
        return tuple(
            self._with_parents(draft) if draft.id is None else self._resolved[draft.id]
            for draft in drafts
        )

    def _resolve_task(self, name: str) -> None:
        """Resolve a task and its ancestors, without recursion: chains can be long."""
        path: dict[str, None] = {name: None}
        while path:
            at = next(reversed(path))
            after = None if at in self._resolved else _after(self._own[at])
            unnamed = [
                task
                for task in (after.tasks if after else ())
                if task in self._own and task not in self._resolved
            ]
            if not unnamed:
                if at not in self._resolved:
                    draft = self._resolved[at] = self._with_parents(self._own[at])
                    self._known[at] = str(log_id_of(draft, self._submitter))
                del path[at]
            elif unnamed[0] in path:
                circle = [*path, unnamed[0]][list(path).index(unnamed[0]) :]
                hint = " after ".join(circle[:5])
                raise CyclicTasks("Circular dependency between tasks", hint=hint)
            else:
                path[unnamed[0]] = None

    def _with_parents(self, draft: TaskDraft) -> TaskDraft:
        after = _after(draft)
        if after is None or draft.options is None:
            return draft
        options = replace(
            draft.options,
            after=replace(after, tasks=self._ids_of(after.tasks)),
            outputs_of=self._ids_of(draft.options.outputs_of),
        )
        return replace(draft, options=options)

    def _ids_of(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(self._known[name] for name in names)


async def _read_parent_names(
    drafts: Sequence[TaskDraft],
    own: Mapping[str, TaskDraft],
    store: Store,
    find_task: FindTask,
) -> dict[str, str]:
    """Return the log ids of the parents that are not in this request."""
    refs = {
        task: (index, place)
        for index, draft in enumerate(drafts)
        for task, place in _parent_fields(draft)
        if task not in own
    }
    found = await store.read_ids_by_name(list(refs)) if refs else {}
    known: dict[str, str] = {}
    for ref, (index, place) in refs.items():
        at = "$" if len(drafts) == 1 else f"$[{index}]"
        field = f"{at}.{place}"
        try:
            known[ref] = found[ref][0] if ref in found else (await find_task(ref)).id
        except TaskNotFound as error:
            hint = f"no task is called {ref}"
            raise ParentNotFound(_NOT_FOUND, field=field, hint=hint) from error
        if array_of(TaskId(known[ref])) is not None:
            hint = f"{ref} is a member of an array: use the array as parent"
            raise ParentNotFound(_NOT_FOUND, field=field, hint=hint)
    return known


async def _check_members(
    drafts: Sequence[TaskDraft],
    own: Mapping[str, TaskDraft],
    known: Mapping[str, str],
    store: Store,
) -> None:
    """Refuse outputs of too many members now, not when the array has ended."""
    counts: dict[str, int] = {}
    for index, draft in enumerate(drafts):
        outputs_of = draft.options.outputs_of if draft.options else ()
        for place, task in enumerate(outputs_of):
            if task not in counts:
                if len(counts) == OUTPUTS_READ_MAX:
                    return  # The worker will refuse what is left.
                counts[task] = await _member_count(task, own, known, store)
            if counts[task] > MEMBERS_MAX:
                at = "$" if len(drafts) == 1 else f"$[{index}]"
                raise ParentTooLarge(
                    "Too many members",
                    field=f"{at}.outputs_of[{place}]",
                    hint=f"array {task} has {counts[task]} members; a task can get the"
                    f" outputs of at most {MEMBERS_MAX}",
                )


async def _member_count(
    task: str, own: Mapping[str, TaskDraft], known: Mapping[str, str], store: Store
) -> int:
    """Return the number of members of a parent; 0 if it is not an array."""
    if (draft := own.get(task)) is not None:
        array = draft.options.array if draft.options else None
    else:
        record = await store.read_task(known[task], TaskParts.BRIEF)
        array = record.spec.array if record and record.spec else None
    return array.count if array else 0


def _parent_fields(draft: TaskDraft) -> Iterator[tuple[str, str]]:
    """Yield the parents of a draft, with their places in its fields."""
    if draft.options is None or draft.options.after is None:
        return
    for place, task in enumerate(draft.options.after.tasks):
        yield task, f"after[{place}]"
    for place, task in enumerate(draft.options.outputs_of):
        yield task, f"outputs_of[{place}]"


def _after(draft: TaskDraft) -> After | None:
    return None if draft.options is None else draft.options.after
