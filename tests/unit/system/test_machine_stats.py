"""The hardware that an agent reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from octaskly.system.machine_stats import is_on_mains_power, list_gpus


def test_gpus_are_listed_by_the_driver_s_numbers(tmp_path: Path) -> None:
    """The driver has a folder for each."""
    for bus in ("0000:01:00.0", "0000:41:00.0"):
        (tmp_path / "proc" / bus).mkdir(parents=True)

    assert list_gpus(tmp_path / "proc", tmp_path / "dev") == ("0", "1")


def test_without_the_driver_s_folder_devices_are_counted(tmp_path: Path) -> None:
    """As in a container; control devices do not count."""
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()

    assert list_gpus(tmp_path / "none", tmp_path) == ("0", "1", "2")
    assert list_gpus(tmp_path / "none", tmp_path / "none") == ()


def test_machine_without_a_list_of_power_supplies_is_on_mains_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container without /sys, the agent would not start otherwise."""
    monkeypatch.setattr("psutil._pslinux.POWER_SUPPLY_PATH", str(tmp_path / "none"))

    assert is_on_mains_power()
