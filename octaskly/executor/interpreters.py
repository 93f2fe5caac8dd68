"""The check that some node has an interpreter for calls, before any is submitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from octaskly.client.flows.task_fields import Requires
from octaskly.executor.errors import InterpreterMismatch
from octaskly.rest.mesh import NodeInfo

NODES_SHOWN: Final = 3  #: in a hint


def check_interpreters(nodes: Sequence[NodeInfo], requires: Requires) -> None:
    """Check that a node with the other requirements has the Python version, too.

    Without this check, a call would wait forever, and nothing would say why.
    If no node meets the others, it waits, as every task does.

    Raises:
        InterpreterMismatch: none has it; the hint says what to install where.
    """
    version = requires["python"]
    candidates = [node for node in nodes if _meets_others(node, requires)]
    if not candidates or any(version in node.pythons for node in candidates):
        return
    hints = list(_hints(candidates[:NODES_SHOWN], version))
    where = "no node" if len(candidates) == len(nodes) else "no node that fits"
    raise InterpreterMismatch(
        f"{where} can run calls of Python {version}", hint="\n".join(hints)
    )


def _hints(nodes: Sequence[NodeInfo], version: str) -> Iterator[str]:
    for node in nodes:
        if not node.pythons:
            yield (
                f"pip install cloudpickle    on {node.name}, in the environment"
                " of its agent, and restart it"
            )
        else:
            yield (
                f"install python{version} on {node.name}, which has"
                f" {', '.join(node.pythons)}, and restart its agent"
            )


def _meets_others(node: NodeInfo, requires: Requires) -> bool:
    """Return True if a node meets the requirements that do not depend on its load."""
    labels = requires.get("labels", {})
    return (
        all(node.labels.get(name) == value for name, value in labels.items())
        and requires.get("node", node.name) in (node.name, node.id)
        and requires.get("os", node.os) == node.os
        and requires.get("arch", node.arch) == node.arch
    )
