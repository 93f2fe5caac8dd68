"""Which tasks may run on a visitor, and why others may not."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octaskly.core.model.drafts import TaskDraft, with_visitors_allowed
from octaskly.core.model.task_options import Requirements, TaskOptions, VisitorRule
from octaskly.core.scheduling.requirements import VISITOR_RETURN_S, unmet_requirements
from tests.support.builders import node_info

NOW_MS = 1_800_000_000_000
LEFT_S = 600
GUEST = replace(node_info("guest"), leaves_ms=NOW_MS + 1000 * LEFT_S)


@pytest.mark.parametrize(
    ("rule", "needed_s", "codes"),
    [
        (VisitorRule.UNSET, 0, ["visitor"]),
        (VisitorRule.REFUSED, 0, ["visitor"]),
        (VisitorRule.HAS_ENV, 0, ["visitor_env"]),
        (VisitorRule.ALLOWED, LEFT_S - VISITOR_RETURN_S, []),
        (VisitorRule.ALLOWED, LEFT_S, ["visitor_time"]),
    ],
)
def test_a_visitor_is_rejected_with_the_reason(
    rule: VisitorRule, needed_s: int, codes: list[str]
) -> None:
    """`octaskly explain` shows it; a member is not concerned."""
    requires = Requirements(visitors=rule, visitor_s=needed_s)

    found = list(unmet_requirements(GUEST, requires, NOW_MS))

    assert [each.code for each in found] == codes
    assert not list(unmet_requirements(node_info("ash"), requires, NOW_MS))


@pytest.mark.parametrize(
    ("env", "rule", "allowed"),
    [
        ((), VisitorRule.UNSET, VisitorRule.ALLOWED),
        ((("A", "1"),), VisitorRule.UNSET, VisitorRule.HAS_ENV),
        ((), VisitorRule.REFUSED, VisitorRule.REFUSED),
    ],
)
def test_a_mesh_that_allows_visitors_does_so_for_tasks_that_say_nothing(
    env: tuple[tuple[str, str], ...], rule: VisitorRule, allowed: VisitorRule
) -> None:
    """`--visitor-tasks all`; variables still need the submitter's word."""
    options = TaskOptions(env=env, requires=Requirements(visitors=rule))

    draft = with_visitors_allowed(TaskDraft("true", options=options))

    assert draft.options is not None
    assert draft.options.requires is not None
    assert draft.options.requires.visitors is allowed
