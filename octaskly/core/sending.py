"""What a step of a reign tells its workers: one `Send` for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from octaskly.core.effects import Effect, Send
from octaskly.core.messages import Dispatch, Kill, Message
from octaskly.core.model import AttemptId, Epoch, NodeId, TaskId, TaskSpec

Item = tuple[AttemptId, TaskSpec]


def orders(
    epoch: Epoch,
    kills: Mapping[NodeId, Sequence[tuple[TaskId, AttemptId]]],
    batches: Mapping[NodeId, Sequence[Item]],
    bytes_max: int,
) -> list[Effect]:
    """Return one `Send` for each worker, its kills first.

    Args:
        epoch: Of the reign.
        kills: Attempts that are to end.
        batches: Attempts that are to begin.
        bytes_max: Of attempts in one message, as the bound on frames asks for.
    """
    messages: dict[NodeId, list[Message]] = {}
    for node, ended in kills.items():
        messages[node] = [Kill(epoch, tuple(ended))]
    for node, items in batches.items():
        messages.setdefault(node, []).extend(_dispatches(epoch, items, bytes_max))
    return [Send(node, tuple(parts)) for node, parts in messages.items()]


def _dispatches(epoch: Epoch, items: Sequence[Item], bytes_max: int) -> list[Message]:
    messages: list[Message] = []
    start = size = 0
    for index, (_, spec) in enumerate(items):
        item = spec.size_bytes
        if size and size + item > bytes_max:
            messages.append(Dispatch(epoch, tuple(items[start:index])))
            start, size = index, 0
        size += item
    messages.append(Dispatch(epoch, tuple(items[start:])))
    return messages
