"""The table of all settings, for docs/reference/configuration.md."""

from __future__ import annotations

from octaskly.config.settings import SETTINGS, Setting
from octaskly.config.value_types import Many, Switch


def table() -> str:
    """Return a row for each setting."""
    rows = (_row(setting) for setting in SETTINGS)
    heads = "| Key | Flag, variable | Takes | Default | Meaning |\n"
    return heads + "| --- | --- | --- | --- | --- |\n" + "".join(rows)


def _row(setting: Setting) -> str:
    flag = f"`{setting.flag} {setting.kind.metavar}`".replace("|", "\\|")
    if isinstance(setting.kind, Switch):
        flag = f"`{setting.flag}`, `--no-{setting.flag.removeprefix('--')}`"
    takes = setting.kind.allowed
    if isinstance(setting.kind, Many):
        takes = f"a list of: {takes}"
    says = f"{setting.says}; {setting.more}" if setting.more else setting.says
    return (
        f"| `{setting.key}` | {flag}, `{setting.variable}` | {takes} "
        f"| {setting.default_text} | {says} |\n"
    )
