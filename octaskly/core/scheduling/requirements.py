"""Requirements of tasks against nodes: one rule for matching and for explanations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from octaskly.core.model.nodes import NodeInfo, RejectionReason, RosterEntry
from octaskly.core.model.task_options import (
    Requirements,
    VisitorRule,
)

MINUTE_S = 60
VISITOR_RETURN_S = 30  #: a visitor gives back what it runs so long before it leaves


def count_phrase(count: int, what: str) -> str:
    """Return a count with its noun, in the plural if needed."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def meets_requirements(
    node: NodeInfo | RosterEntry, requires: Requirements, wall_ms: int
) -> bool:
    """Return True if an idle node could run a task with these requirements.

    `wall_ms` is the wall clock, by which visitors leave.
    """
    return next(unmet_requirements(node, requires, wall_ms), None) is None


def unmet_requirements(
    node: NodeInfo | RosterEntry, requires: Requirements, wall_ms: int
) -> Iterator[RejectionReason]:
    """Yield each requirement that a node does not meet even when idle."""
    if node.leaves_ms is not None:
        yield from _visitor_rejections(node.leaves_ms, requires, wall_ms)
    yield from _kind_rejections(node, requires)
    labels = dict(node.labels)
    for name, value in requires.labels:
        if labels.get(name) != value:
            has = f" (has {name}={labels[name]})" if name in labels else ""
            yield RejectionReason("label", f"lacks label {name}={value}{has}")
    if requires.slots > node.slots:
        yield RejectionReason(
            "cpus", f"needs {count_phrase(requires.slots, 'cpu')}, has {node.slots}"
        )
    if requires.memory_mb > node.memory_mb:
        memory = f"needs {requires.memory_mb} MB of memory, has {node.memory_mb}"
        yield RejectionReason("memory", memory)
    if requires.gpus > len(node.gpus):
        has = str(len(node.gpus)) if node.gpus else "no GPU"
        yield RejectionReason(
            "gpus", f"needs {count_phrase(requires.gpus, 'GPU')}, has {has}"
        )


def _kind_rejections(
    node: NodeInfo | RosterEntry, requires: Requirements
) -> Iterator[RejectionReason]:
    """Yield why a machine of this kind is not the one that a task requires."""
    if requires.node and requires.node not in (node.id, node.name):
        yield RejectionReason("node", f"is not {requires.node}")
    if requires.os and requires.os != node.os:
        yield RejectionReason(
            "os", f"runs {node.os or 'another system'}, not {requires.os}"
        )
    if requires.arch and requires.arch != node.arch:
        yield RejectionReason(
            "arch", f"is {node.arch or 'another machine'}, not {requires.arch}"
        )
    if requires.python and requires.python not in node.pythons:
        has = ", ".join(node.pythons) or "none"
        yield RejectionReason(
            "python", f"has no Python {requires.python} for calls (has {has})"
        )


def _visitor_rejections(
    leaves_ms: int, requires: Requirements, wall_ms: int
) -> Iterator[RejectionReason]:
    """Yield why a task does not go to a visitor that leaves at this time."""
    if requires.visitors in (VisitorRule.UNSET, VisitorRule.REFUSED):
        yield RejectionReason(
            "visitor", "is a visitor, and the task does not allow visitors"
        )
    elif requires.visitors is VisitorRule.HAS_ENV:
        yield RejectionReason(
            "visitor_env",
            "is a visitor, and the task has environment variables, which need"
            " --visitors=with-env",
        )
    left_s = max(0, (leaves_ms - wall_ms) // 1000 - VISITOR_RETURN_S)
    if requires.visitor_s > left_s:
        yield RejectionReason(
            "visitor_time",
            f"leaves in {_minutes(left_s)}, and the task needs"
            f" {_minutes(requires.visitor_s)}",
        )


def _minutes(seconds: int) -> str:
    return f"{seconds} s" if seconds < MINUTE_S * 2 else f"{seconds // MINUTE_S} min"


def describe_requirements(requires: Requirements | None) -> str:
    """Return the requirements in words."""
    if requires is None:
        return "nothing"
    parts = [f"label {name}={value}" for name, value in requires.labels]
    parts += [f"the name {requires.node}"] if requires.node else []
    parts += [word for word in (requires.os, requires.arch) if word]
    parts += [f"Python {requires.python}"] if requires.python else []
    parts += [count_phrase(requires.cpus, "CPU")] if requires.cpus else []
    parts += [f"{requires.memory_mb} MB of memory"] if requires.memory_mb else []
    parts += [count_phrase(requires.gpus, "GPU")] if requires.gpus else []
    return ", ".join(parts) or "nothing"


def why_none_meets(
    nodes: Sequence[NodeInfo | RosterEntry], requires: Requirements, wall_ms: int
) -> str | None:
    """Return why no node meets the requirements, or None if one does."""
    if not nodes:
        return "no node is here"
    if any(meets_requirements(node, requires, wall_ms) for node in nodes):
        return None
    may_visit = Requirements(visitors=requires.visitors, visitor_s=requires.visitor_s)
    nodes = [node for node in nodes if meets_requirements(node, may_visit, wall_ms)]
    if not nodes:
        return "only visitors are here, and the task may run on none of them"
    for part, text in _single_requirements(requires, nodes):
        part = replace(part, visitors=requires.visitors)
        if not any(meets_requirements(node, part, wall_ms) for node in nodes):
            return text
    return "no node meets all requirements"


def _single_requirements(
    requires: Requirements, nodes: Sequence[NodeInfo | RosterEntry]
) -> Iterator[tuple[Requirements, str]]:
    """Yield each requirement by itself, with a text that none of the nodes meets it."""
    node, os, arch, python = requires.node, requires.os, requires.arch, requires.python
    for name, value in requires.labels:
        part = Requirements(labels=((name, value),))
        yield part, f"no node has label {name}={value}"
    yield Requirements(node=node), f"no node is called {node}"
    yield Requirements(os=os), f"no node runs {os}"
    yield Requirements(arch=arch), f"no node is {arch}"
    yield Requirements(python=python), f"no node has Python {python} for calls"
    cpus, memory_mb, gpus = requires.cpus, requires.memory_mb, requires.gpus
    most = max(nodes, key=lambda node: node.slots)
    largest = f"largest is {most.slots} ({most.name})"
    yield Requirements(cpus=cpus), f"no node has {cpus} CPUs; {largest}"
    most = max(nodes, key=lambda node: node.memory_mb)
    largest = f"largest is {most.memory_mb} MB ({most.name})"
    text = f"no node has {memory_mb} MB of memory; {largest}"
    yield Requirements(memory_mb=memory_mb), text
    most = max(nodes, key=lambda node: len(node.gpus))
    largest = f"largest is {len(most.gpus)} ({most.name})"
    text = f"no node has {gpus} GPUs; {largest}"
    yield Requirements(gpus=gpus), text if most.gpus else "no node has a GPU"
