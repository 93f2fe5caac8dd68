"""The paths of files to send with tasks, as a program or command names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from octaskly.client.endpoint import Endpoint
from octaskly.client.flows.files import SendCallbacks, within
from octaskly.client.flows.request_flow import RequestFlow
from octaskly.client.flows.retry import Deadline
from octaskly.client.flows.steps import Flow, RunBlocking
from octaskly.client.flows.task_fields import (
    InputFields,
    InputPath,
    Inputs,
    Sharing,
    invalid_value,
    listed,
    path_text,
)
from octaskly.client.flows.tasks import DraftWithFiles
from octaskly.rest.client_types import Draft

if TYPE_CHECKING:
    from octaskly.client.local_files import Attached, LocalFiles


class TaskInputs(NamedTuple):
    """The files that are sent with the tasks of one call."""

    paths: Sequence[InputPath]
    includes_ignored: bool
    sharing: Sharing
    endpoint: Endpoint | None  #: the node, if they are lent

    def files(self, array: Mapping[str, Any] | None = None) -> LocalFiles:
        """Return the files for a task, or for the members of an array."""
        # Imported here because most tasks have no files.
        from octaskly.client.local_files import LocalFiles  # noqa: PLC0415

        return LocalFiles(
            self.paths,
            array,
            includes_ignored=self.includes_ignored,
            sharing=self.sharing,
        )

    def attach(
        self, requests: RequestFlow, draft: Draft, deadline: Deadline
    ) -> Flow[DraftWithFiles]:
        """Send or lend the files of a task."""
        if not self.paths:
            return DraftWithFiles(draft)
        files = self.files(draft.array)
        attached = yield from within(deadline, files.attach(requests, [draft]))
        [ready] = _with_digests(files, attached)
        if not attached.answer.is_lent:
            return ready
        from octaskly.client.lending import Lender  # noqa: PLC0415 - as above

        assert self.endpoint is not None
        # The task waits for its files, and the caller for the task, as long as it will.
        patient = SendCallbacks(on_no_room=lambda _refusal: None)
        lender = Lender(self.endpoint, requests, attached.tree, patient)
        try:
            yield RunBlocking(partial(lender.open, deadline))
        except BaseException:
            yield RunBlocking(lender.close)
            raise
        return ready._replace(loan=lender)

    def attach_many(
        self, requests: RequestFlow, drafts: Sequence[Draft], deadline: Deadline
    ) -> Flow[list[DraftWithFiles]]:
        """Send the files that all of several tasks get; they are not lent."""
        if not self.paths:
            return [DraftWithFiles(draft) for draft in drafts]
        files = self.files()
        attached = yield from within(deadline, files.attach(requests, drafts))
        return _with_digests(files, attached)


def _with_digests(files: LocalFiles, attached: Attached) -> list[DraftWithFiles]:
    """Return tasks with what their outputs may replace here."""
    digests = files.digests()
    return [
        DraftWithFiles(draft, digests if draft.outputs and not draft.cwd else None)
        for draft in attached.drafts
    ]


def take_inputs(
    fields: InputFields,
    *,
    lend_to: Endpoint | None = None,
    is_replicated: bool = False,
) -> TaskInputs:
    """Remove what is to be sent from the fields of a task, and return it.

    Args:
        fields: The fields, which are changed.
        lend_to: The node, if the caller waits for the end of the tasks.
        is_replicated: The caller does not wait for their end.

    Raises:
        Invalid: it is no path.
    """
    paths = tuple(_input_paths(fields.pop("inputs", ())))
    includes_ignored = fields.pop("includes_ignored", False)
    if includes_ignored and not paths:
        raise invalid_value(
            "includes_ignored needs inputs",
            "name a folder: inputs='.'",
            "includes_ignored",
        )
    sharing: Sharing = "replicate" if is_replicated else "lend" if lend_to else "upload"
    return TaskInputs(paths, includes_ignored, sharing, lend_to)


def _input_paths(inputs: Inputs) -> Iterator[InputPath]:
    """Yield the paths of one input, several, or a mapping to places."""
    pairs = inputs.items() if isinstance(inputs, Mapping) else inputs
    for one in listed(pairs):
        pair = one if isinstance(one, tuple) else (one,)
        if len(pair) not in (1, 2):
            raise invalid_value(
                f"inputs has {one!r:.80}, which is not a path and its place",
                "a tuple has two paths: ('data.csv', 'in/data.csv')",
                "inputs",
            )
        yield InputPath(*(path_text(path, "inputs") for path in pair))
