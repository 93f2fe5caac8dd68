"""How an executor submits: refusals, and ids that were used before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import octaskly
from tests.support.agents import Agent

RESULT_S_MAX = 90.0


@pytest.fixture
def executor(agents: list[Agent]) -> Iterator[octaskly.Executor]:
    """An executor at the agent that is not dispatcher."""
    with octaskly.Executor(state_dir=agents[1].state) as executor:
        yield executor


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"cwd": "a/../b"}, "field: cwd"),
        ({"name": "\ud800"}, "lone surrogate"),
        ({"after": ["task-000000000001-00000000"]}, "Parent task not found"),
    ],
)
def test_an_invalid_command_fails_alone(
    executor: octaskly.Executor, wrong: Any, says: str
) -> None:
    """Commands that were submitted with it run; its error names its own field."""
    before = [executor.submit_command(f"echo {n}") for n in range(3)]
    bad = executor.submit_command("true", **wrong)
    after = [executor.submit_command(f"echo {n}") for n in range(3, 6)]

    error = bad.exception(RESULT_S_MAX)
    assert isinstance(error, octaskly.Invalid)
    assert says in str(error)
    assert "$[" not in str(error)
    results = [future.result(RESULT_S_MAX).stdout for future in before + after]
    assert results == [f"{n}\n" for n in range(6)]
