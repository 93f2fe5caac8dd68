"""The settings of commands and programs that use a mesh, beside those of an agent."""

from __future__ import annotations

from typing import Final

from octaskly.config.settings import NAME, Setting
from octaskly.config.value_types import Kind, Place

CLIENT_SETTINGS: Final = (
    Setting(
        field="url",
        flag="--url",
        kind=Kind("URL", "an http:// or https:// URL", r"https?://[^\s,]+"),
        says="the node that commands ask",
        unset="the agent of this machine",
        more="",
        default=None,
    ),
    Setting(
        field="node",
        flag="--node",
        kind=NAME,
        says="the agent of this machine that commands ask, where several run",
        unset="the only one that runs",
        more="",
        default=None,
        has_variable=False,
    ),
    Setting(
        field="ca_file",
        flag="--ca-file",
        kind=Place("FILE", "the path of a file", r".+"),
        says="the authority of the mesh for https:// URLs",
        unset="those of the system",
        more="",
        default=None,
    ),
)
"""Their flags stand before the command."""
