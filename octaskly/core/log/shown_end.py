"""The end of a failed task as people see it, if no attempt says it by itself.

The log records how each attempt ended. If a task failed because attempts were lost, or
because no node had its inputs, the reason follows from all of its attempts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Final

from msgspec.structs import replace

from octaskly.core.model.tasks import (
    DETAIL_CHARS_MAX,
    Attempt,
    AttemptState,
    EndReason,
    Outcome,
    TaskSpec,
)

INPUT_TEXTS_MAX: Final = 8  #: about different nodes
INPUT_CHARS_MAX: Final = 500  #: of each text


def shown_failure(
    spec: TaskSpec | None, deciding: Attempt, attempts: Sequence[Attempt]
) -> Attempt:
    """Return the attempt that made a task fail, with the reason for people.

    Args:
        spec: The task, if it is known.
        deciding: The attempt.
        attempts: All attempts at the task, including `deciding`.
    """
    outcome = deciding.outcome
    if outcome is None or deciding.state is not AttemptState.RELEASED:
        return deciding
    if outcome.reason is EndReason.LOST:
        outcome = _shown_loss(spec, outcome, attempts)
    elif outcome.reason is EndReason.INPUTS:
        outcome = replace(outcome, detail=_absent_inputs(deciding, attempts))
    outcome = replace(outcome, state=AttemptState.FAILED)
    return replace(deciding, state=AttemptState.FAILED, outcome=outcome)


def _shown_loss(
    spec: TaskSpec | None, outcome: Outcome, attempts: Sequence[Attempt]
) -> Outcome:
    if spec is not None and not spec.may_run_twice:
        lost_text = outcome.detail[:DETAIL_CHARS_MAX] or "its worker was lost"
        return replace(outcome, detail=f"{lost_text}, and it must not run twice")
    lost = [a for a in attempts if a.outcome and a.outcome.reason is EndReason.LOST]
    detail = f"its worker or launcher was lost {len(lost)} times while it ran"
    return replace(outcome, reason=EndReason.POISON, detail=detail)


def _absent_inputs(deciding: Attempt, attempts: Sequence[Attempt]) -> str:
    """Return what is missing, once every node that could run the task lacks it.

    Inputs that a node lacked in an earlier epoch may have arrived there since.
    """
    by_node = {
        each.node: each.outcome.detail
        for each in attempts
        if each.outcome is not None
        and each.outcome.reason is EndReason.INPUTS
        and each.id.term == deciding.id.term
    }
    texts = missing_texts(by_node.values())
    text = "; ".join(texts)
    if len(texts) > 1:
        return f"no node has all its inputs: {text}"
    for noun, verb in (("input", "is"), ("inputs", "are")):
        if text.startswith(f"{noun} "):
            return f"{text} {verb} on no node"
    return text


def missing_texts(texts: Collection[str]) -> list[str]:
    """Return what each of some nodes lacks, each text once, in bounded length."""
    shown = list(dict.fromkeys(map(cut_missing_text, islice(texts, INPUT_TEXTS_MAX))))
    more = len(texts) - INPUT_TEXTS_MAX
    return [*shown, f"and {more} more nodes lack something"] if more > 0 else shown


def cut_missing_text(text: str) -> str:
    """Return the start of a long text about what a node lacks."""
    return text if len(text) <= INPUT_CHARS_MAX else f"{text[: INPUT_CHARS_MAX - 3]}..."
