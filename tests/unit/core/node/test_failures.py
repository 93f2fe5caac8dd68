"""What a node does while its disk or its API fails."""

from __future__ import annotations

from octaskly.core.effects import LogLine
from octaskly.core.events import ApiChanged, DiskChanged, SavedState
from octaskly.core.node.node import Node
from tests.support.builders import moment, settings

REASON = "Too many connections"


def test_a_node_whose_api_fails_does_not_claim() -> None:
    """Until it serves other nodes again."""
    node = Node(settings(), SavedState())
    node.step(ApiChanged(is_failing=False), moment())

    effects = node.step(ApiChanged(is_failing=True, reason=REASON), moment(0.1))

    assert effects == [LogLine("warning", "API failing", (("reason", REASON),))]
    assert not node._candidacy.is_eligible
    node.step(DiskChanged(is_failing=True), moment(0.2))
    node.step(ApiChanged(is_failing=False), moment(0.3))
    assert not node._candidacy.is_eligible
    node.step(DiskChanged(is_failing=False), moment(0.4))
    assert node._candidacy.is_eligible
