"""Makes the table of docs/reference/configuration.md: `make docs`."""

from __future__ import annotations

from pathlib import Path

from octaskly.config.kinds import Many, Switch
from octaskly.config.table import SETTINGS, Setting

PAGE = Path(__file__).parent.parent.parent / "docs/reference/configuration.md"
BEGIN = "<!-- Made from octaskly/config/table.py by `make docs`. -->\n"
END = "<!-- The end of what is made. -->\n"


def table() -> str:
    """Return a row for each setting."""
    rows = (_row(setting) for setting in SETTINGS)
    heads = "| Key | Flag, variable | Takes | Default | Meaning |\n"
    return heads + "| --- | --- | --- | --- | --- |\n" + "".join(rows)


def page(text: str) -> str:
    """Return the page with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


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


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
