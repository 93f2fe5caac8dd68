"""Sources of settings: flags, environment variables and files, with their errors.

All errors of all sources are collected before any is reported, so that a user can fix
them at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octaskly.config.client_settings_file import read_protected_file
from octaskly.config.paths import settings_files
from octaskly.config.settings import CLIENT_SETTINGS, SETTINGS, Setting
from octaskly.config.value_types import InvalidValue

SHOWN_CHARS = 60  #: length of a rejected value in a message

_PLAIN = re.compile(r"[\w./:=@+-]{1,60}", re.ASCII)
_BY_KEY = {setting.key: setting for setting in (*SETTINGS, *CLIENT_SETTINGS)}


@dataclass(frozen=True, slots=True)
class SettingValue:
    """A value with its source."""

    value: Any
    origin: str  #: a flag, a variable, or `FILE:LINE`


def _quoted(value: object) -> str:
    """Return the `repr` of a value, cut to `SHOWN_CHARS`."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def _unquoted(value: object) -> str:
    """Return a plain value as typed, and any other value quoted."""
    return str(value) if _PLAIN.fullmatch(str(value)) else _quoted(value)


class _SourceReader:
    """The values of one source, by field of the options."""

    def __init__(
        self, faults: list[str], show: Callable[[object], str] = _unquoted
    ) -> None:
        self.values: dict[str, SettingValue] = {}
        self._faults = faults
        self._show = show

    def read_setting(
        self, field: str, read: Callable[[Any], Any], raw: Any, origin: str, name: str
    ) -> None:
        """Parse and keep `raw`, or add its errors, which start with `name`."""
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
    """Return the values of all sources, by field.

    Flags override the environment, which overrides files. Errors are added to `faults`.
    """
    values: dict[str, SettingValue] = {}
    for path in reversed(settings_files(environ)):
        values |= read_settings_file(path, faults)
    values |= _read_environment(environ, faults, settings)
    values |= _read_flags(flags, faults, settings)
    fields = {setting.field for setting in settings}
    return {field: each for field, each in values.items() if field in fields}


def read_settings_file(path: Path, faults: list[str]) -> dict[str, SettingValue]:
    """Return the values of a file, by field; none if the file is missing."""
    source = _SourceReader(faults, _quoted)
    try:
        text = read_protected_file(path)
        # Imported here, as most machines have no file and commands must be quick.
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
    """Return the values of variables, by field; empty variables are ignored."""
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
    """Return the values of flags, by field; None and () mean that a flag is absent."""
    source = _SourceReader(faults)
    for setting in settings:
        raw, flag = flags.get(setting.field), setting.flag
        if raw is not None and raw != ():
            source.read_setting(
                setting.field, setting.value_type.parse_flag, raw, flag, flag
            )
    return source.values


def _line(text: str, key: str) -> int:
    """Return the line number of a key, found by a text search; 1 if not found."""
    match = re.search(rf"^[ \t]*\[*[\"']?{re.escape(key)}\b", text, re.MULTILINE)
    return text.count("\n", 0, match.start()) + 1 if match else 1


def _did_you_mean(key: str) -> str:
    close = difflib.get_close_matches(key.lower().replace("-", "_"), _BY_KEY, 1)
    return f"; did you mean {close[0]}?" if close else ""
