"""What tasks ask of nodes and what nodes have: one rule for placing and for people."""

from __future__ import annotations

from collections.abc import Iterator

from octaskly.core.messages import Member
from octaskly.core.model import NodeInfo
from octaskly.core.options import Requires


def has_all(node: NodeInfo | Member, requires: Requires) -> bool:
    """Whether a node could run such a task if it had nothing else to do."""
    return next(missing(node, requires), None) is None


def missing(node: NodeInfo | Member, requires: Requires) -> Iterator[str]:
    """Yield what a node lacks for good, in words."""
    if requires.node and requires.node not in (node.id, node.name):
        yield f"is not {requires.node}"
    if requires.os and requires.os != node.os:
        yield f"runs {node.os or 'another system'}, not {requires.os}"
    if requires.arch and requires.arch != node.arch:
        yield f"is {node.arch or 'another machine'}, not {requires.arch}"
    labels = dict(node.labels)
    for name, value in requires.labels:
        if labels.get(name) != value:
            has = f" (has {name}={labels[name]})" if name in labels else ""
            yield f"lacks label {name}={value}{has}"
    if requires.slots > node.slots:
        yield f"needs {requires.slots} cpus, has {node.slots}"
    if requires.memory_mb > node.memory_mb:
        yield f"needs {requires.memory_mb} MB of memory, has {node.memory_mb}"
    if requires.gpus > len(node.gpus):
        yield f"needs {requires.gpus} GPUs, has {len(node.gpus) or 'none'}"
