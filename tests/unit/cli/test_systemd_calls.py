"""Calls of systemctl by `octaskly service`."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from octaskly.cli.service.systemd import Scope, Systemd


def test_an_agent_that_drains_for_long_is_not_a_failed_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It lasts for up to a day, if the setting says so; only systemd knows it."""

    def run(
        words: Any, *, timeout: float | None, **_: Any
    ) -> subprocess.CompletedProcess[str]:
        if timeout is not None:
            raise subprocess.TimeoutExpired(words, timeout)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)

    Systemd(Scope.USER, {}).start_unit("restart")
