"""Where settings are said: flags, the environment, files; and what is wrong there.

Every fault of every source is found before anything is refused: who mends a file does
not want to meet its errors one by one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octaskly.config.client import CLIENT_SETTINGS
from octaskly.config.client_files import read_protected_file
from octaskly.config.paths import settings_files
from octaskly.config.settings import SETTINGS, Setting
from octaskly.config.value_types import InvalidValue

SHOWN_CHARS = 60  #: of a value that is refused

_PLAIN = re.compile(r"[\w./:=@+-]{1,60}", re.ASCII)
_BY_KEY = {setting.key: setting for setting in (*SETTINGS, *CLIENT_SETTINGS)}


@dataclass(frozen=True, slots=True)
class SettingValue:
    """A value, and where it was said."""

    value: Any
    origin: str  #: a flag, a variable, or `FILE:LINE`


def _quoted(value: object) -> str:
    """Return a value for a message, never long."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def _unquoted(value: object) -> str:
    """Return text as it was typed, where that is clear."""
    return str(value) if _PLAIN.fullmatch(str(value)) else _quoted(value)


class _SourceReader:
    """What one source says, by field of the options."""

    def __init__(
        self, faults: list[str], show: Callable[[object], str] = _unquoted
    ) -> None:
        self.values: dict[str, SettingValue] = {}
        self._faults = faults
        self._show = show

    def read_setting(
        self, field: str, read: Callable[[Any], Any], raw: Any, origin: str, name: str
    ) -> None:
        """Keep what `raw` means; note what is wrong with it, after its `name`."""
        try:
            self.values[field] = SettingValue(read(raw), origin)
        except InvalidValue as error:
            self._faults += [
                f"{name} {self._show(value)}: {allowed}"
                for value, allowed in error.faults
            ]


def read_all_sources(
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    faults: list[str],
    settings: Sequence[Setting] = SETTINGS,
) -> dict[str, SettingValue]:
    """Return what all sources say, by field; flags prevail, then the environment."""
    said: dict[str, SettingValue] = {}
    for path in reversed(settings_files(environ)):
        said |= read_settings_file(path, faults)
    said |= _read_environment(environ, faults, settings)
    said |= _read_flags(flags, faults, settings)
    fields = {setting.field for setting in settings}
    return {field: each for field, each in said.items() if field in fields}


def read_settings_file(path: Path, faults: list[str]) -> dict[str, SettingValue]:
    """Return what a file says, by field; one that is not there says nothing."""
    source = _SourceReader(faults, _quoted)
    try:
        text = read_protected_file(path)
        # Imported here: most machines have no file, and commands shall be quick.
        import tomllib  # noqa: PLC0415

        rows = tomllib.loads(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        faults.append(f"{path}: {getattr(error, 'strerror', None) or error}")
        return {}
    for key, raw in rows.items():
        place = f"{path}:{_line(text, key)}"
        if setting := _BY_KEY.get(key):
            read = setting.value_type.parse_toml
            source.read_setting(setting.field, read, raw, place, f"{place}: {key} =")
        else:
            faults.append(
                f"{place}: {_unquoted(key)}: no such setting{_did_you_mean(key)}"
            )
    return source.values


def _read_environment(
    environ: Mapping[str, str], faults: list[str], settings: Sequence[Setting]
) -> dict[str, SettingValue]:
    """Return what variables say; an empty one says nothing."""
    source = _SourceReader(faults)
    for setting in settings:
        name = setting.variable
        if raw := environ.get(name):
            source.read_setting(
                setting.field, setting.value_type.parse_text, raw, name, name
            )
    return source.values


def _read_flags(
    flags: Mapping[str, Any], faults: list[str], settings: Sequence[Setting]
) -> dict[str, SettingValue]:
    """Return what flags say; None and () were not given."""
    source = _SourceReader(faults)
    for setting in settings:
        raw, flag = flags.get(setting.field), setting.flag
        if raw is not None and raw != ():
            source.read_setting(
                setting.field, setting.value_type.parse_flag, raw, flag, flag
            )
    return source.values


def _line(text: str, key: str) -> int:
    """Return the number of the line where a key stands, as far as a search can tell."""
    match = re.search(rf"^[ \t]*\[*[\"']?{re.escape(key)}\b", text, re.MULTILINE)
    return text.count("\n", 0, match.start()) + 1 if match else 1


def _did_you_mean(key: str) -> str:
    close = difflib.get_close_matches(key.lower().replace("-", "_"), _BY_KEY, 1)
    return f"; did you mean {close[0]}?" if close else ""
