"""Settings of commands and client programs."""

from __future__ import annotations

from typing import Final

from octaskly.config.settings import NODE_NAME, Setting
from octaskly.config.value_types import PathValue, ValueType

CLIENT_SETTINGS: Final = (
    Setting(
        field="url",
        flag="--url",
        value_type=ValueType("URL", "an http:// or https:// URL", r"https?://[^\s,]+"),
        summary="the node that commands ask",
        unset="the agent of this machine",
        details="",
        default=None,
    ),
    Setting(
        field="node",
        flag="--node",
        value_type=NODE_NAME,
        summary="the agent of this machine that commands ask, where several run",
        unset="the only one that runs",
        details="",
        default=None,
        has_variable=False,
    ),
    Setting(
        field="ca_file",
        flag="--ca-file",
        value_type=PathValue("FILE", "the path of a file", r".+"),
        summary="the authority of the mesh for https:// URLs",
        unset="those of the system",
        details="",
        default=None,
    ),
)
"""Their flags come before the name of the command."""
