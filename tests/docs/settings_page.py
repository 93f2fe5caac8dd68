"""The table of all settings, for docs/reference/configuration.md."""

from __future__ import annotations

from octaskly.config.settings import SETTINGS, Setting
from octaskly.config.value_types import Boolean, ListOf


def table() -> str:
    """Return a row for each setting."""
    rows = (_row(setting) for setting in SETTINGS)
    heads = "| Key | Flag, variable | Takes | Default | Meaning |\n"
    return heads + "| --- | --- | --- | --- | --- |\n" + "".join(rows)


def _row(setting: Setting) -> str:
    flag = f"`{setting.flag} {setting.value_type.metavar}`".replace("|", "\\|")
    if isinstance(setting.value_type, Boolean):
        flag = f"`{setting.flag}`, `--no-{setting.flag.removeprefix('--')}`"
    takes = setting.value_type.allowed
    if isinstance(setting.value_type, ListOf):
        takes = f"a list of: {takes}"
    says = (
        f"{setting.summary}; {setting.details}" if setting.details else setting.summary
    )
    return (
        f"| `{setting.key}` | {flag}, `{setting.variable}` | {takes} "
        f"| {setting.default_text} | {says} |\n"
    )
