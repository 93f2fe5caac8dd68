"""Requirements of tasks against nodes: one rule for matching and for explanations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from octaskly.core.model.nodes import NodeInfo, RejectionReason, RosterEntry
from octaskly.core.model.task_options import Requirements


def count_phrase(count: int, what: str) -> str:
    """Return a count with its noun, in the plural if needed."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def meets_requirements(node: NodeInfo | RosterEntry, requires: Requirements) -> bool:
    """Return True if an idle node could run a task with these requirements."""
    return next(unmet_requirements(node, requires), None) is None


def unmet_requirements(
    node: NodeInfo | RosterEntry, requires: Requirements
) -> Iterator[RejectionReason]:
    """Yield each requirement that a node does not meet even when idle."""
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
    return ", ".join(parts)


def why_none_meets(
    nodes: Sequence[NodeInfo | RosterEntry], requires: Requirements
) -> str | None:
    """Return why no node meets the requirements, or None if one does."""
    if not nodes:
        return "no node is here"
    if any(meets_requirements(node, requires) for node in nodes):
        return None
    for part in _single_requirements(requires):
        if not any(meets_requirements(node, part) for node in nodes):
            return _describe_unmet(part, nodes)
    return "no node meets all requirements"


def _single_requirements(requires: Requirements) -> Iterator[Requirements]:
    """Yield each requirement by itself."""
    for label in requires.labels:
        yield Requirements(labels=(label,))
    yield Requirements(node=requires.node)
    yield Requirements(os=requires.os)
    yield Requirements(arch=requires.arch)
    yield Requirements(python=requires.python)
    yield Requirements(cpus=requires.cpus)
    yield Requirements(memory_mb=requires.memory_mb)
    yield Requirements(gpus=requires.gpus)


def _describe_unmet(part: Requirements, nodes: Sequence[NodeInfo | RosterEntry]) -> str:
    """Return a text that no node meets this requirement, with the closest node."""
    simple = (
        (part.node, f"no node is called {part.node}"),
        (part.os, f"no node runs {part.os}"),
        (part.arch, f"no node is {part.arch}"),
        (part.python, f"no node has Python {part.python} for calls"),
    )
    if part.labels:
        return f"no node has label {part.labels[0][0]}={part.labels[0][1]}"
    for is_asked, text in simple:
        if is_asked:
            return text
    if part.memory_mb:
        most = max(nodes, key=lambda node: node.memory_mb)
        nearest = f"largest is {most.memory_mb} MB ({most.name})"
        return f"no node has {part.memory_mb} MB of memory; {nearest}"
    if part.cpus:
        most = max(nodes, key=lambda node: node.slots)
        return f"no node has {part.cpus} CPUs; largest is {most.slots} ({most.name})"
    most = max(nodes, key=lambda node: len(node.gpus))
    if not most.gpus:
        return "no node has a GPU"
    return f"no node has {part.gpus} GPUs; largest is {len(most.gpus)} ({most.name})"
