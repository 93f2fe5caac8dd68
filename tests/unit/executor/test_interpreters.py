"""The check that a node has the interpreter of the caller."""

from __future__ import annotations

import pytest

from octaskly import InterpreterMismatch, NodeInfo, Requires
from octaskly.executor.executor import check_interpreters

NODES = [
    NodeInfo(name="desk", pythons=["3.11", "3.12"], labels={"disk": "fast"}),
    NodeInfo(name="pi4", os="linux"),
]


@pytest.mark.parametrize(
    "requires",
    [
        Requires(python="3.12"),
        Requires(python="3.12", labels={"disk": "fast"}, node="desk"),
        Requires(python="3.13", labels={"disk": "slow"}),  # This one waits.
        Requires(python="3.13", arch="s390x"),
    ],
)
def test_a_call_is_submitted_if_a_node_has_its_version(requires: Requires) -> None:
    """Or if no node meets the other requirements."""
    check_interpreters(NODES, requires)


NEW_PYTHON = "install python3.13 on desk, which has 3.11, 3.12, and restart its agent"
NEW_PACKAGE = (
    "pip install cloudpickle    on pi4, in the environment of its agent, and restart it"
)


@pytest.mark.parametrize(
    ("requires", "failure", "hint"),
    [
        (
            Requires(python="3.13"),
            "no node can run calls of Python 3.13",
            f"{NEW_PYTHON}\n{NEW_PACKAGE}",
        ),
        (
            Requires(python="3.12", node="pi4", os="linux"),
            "no node that fits can run calls of Python 3.12",
            NEW_PACKAGE,
        ),
    ],
)
def test_the_error_tells_what_to_install_on_which_node(
    requires: Requires, failure: str, hint: str
) -> None:
    """One line for each node."""
    with pytest.raises(InterpreterMismatch) as caught:
        check_interpreters(NODES, requires)

    assert (caught.value.message, caught.value.hint) == (failure, hint)
