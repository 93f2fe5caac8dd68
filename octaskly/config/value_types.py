"""Types of setting values, parsed from flags, variables and TOML files.

A type parses text (flags, variables) and TOML values, and describes its syntax for
messages. TOML values must have the right type: `slots = "8"` is rejected, because TOML
has numbers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octaskly.config.defaults import PEER_PORT, PORT_MAX
from octaskly.config.units import COUNT, Unit, host_and_port, is_host


class InvalidValue(ValueError):
    """Invalid values, each with a description of the valid ones."""

    def __init__(self, *faults: tuple[object, str]) -> None:
        super().__init__(
            "; ".join(f"{value!r}: {allowed}" for value, allowed in faults)
        )
        self.faults = faults


class ValueType:
    """Base class of value types; by itself, text that matches a pattern.

    Args:
        metavar: Placeholder for a value in `--help`.
        allowed: Description of valid values.
        pattern: Regular expression that the whole text must match.
    """

    def __init__(self, metavar: str, allowed: str, pattern: str = r"[^\s,]+") -> None:
        self.metavar = metavar
        self.allowed = allowed
        self._pattern = re.compile(pattern)

    def parse_text(self, text: str) -> Any:
        """Return the value of a text.

        Raises:
            InvalidValue: The text is not valid.
        """
        if not self._pattern.fullmatch(text):
            raise InvalidValue((text, self.allowed))
        return text

    def parse_flag(self, raw: Any) -> Any:
        """Return the value of a flag; raise InvalidValue if it is not valid."""
        return self.parse_text(str(raw))

    def parse_toml(self, raw: object) -> Any:
        """Return the value of an item of a TOML file.

        Raises:
            InvalidValue: The item is not valid.
        """
        if not isinstance(raw, str):
            raise InvalidValue((raw, f"{self.allowed}, in quotes"))
        return self.parse_text(raw)

    def format(self, value: Any) -> str:
        """Return the text of a value, which `parse_text` reads."""
        return str(value)


class NodeName(ValueType):
    """The name of a node: people type it, and it is part of paths and addresses.

    It decides which machine a command is about. Letters of other scripts are not
    allowed, because some look like those of this one.
    """

    def __init__(self) -> None:
        super().__init__(
            "NAME",
            "A-Z, a-z, 0-9, dots and dashes only, at most 63",
            r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}",
        )

    def parse_text(self, text: str) -> str:
        """Return the name; an error has the first wrong character, and a valid name."""
        if self._pattern.fullmatch(text):
            return text
        fault = self.allowed
        if wrong := re.search(r"[^A-Za-z0-9.-]", text):
            name = f"U+{ord(wrong[0]):04X} {unicodedata.name(wrong[0], '')}".rstrip()
            fault += f", not {name}"
        near = nearest_node_name(text)
        if near and not text.startswith(near):  # It is not just too long.
            fault += f"; did you mean {near}?"
        raise InvalidValue((text, fault))


def nearest_node_name(text: str) -> str:
    """Return the text with invalid characters replaced by dashes; empty without any."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")[:63]


class Choices(ValueType):
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        super().__init__(
            f"[{'|'.join(words)}]",
            f"{', '.join(words[:-1])} or {words[-1]}",
            "|".join(words),
        )
        self.choices = words


class PathValue(ValueType):
    """The path of a file or folder.

    In a settings file it must not depend on the current directory of the agent.
    """

    def parse_text(self, text: str) -> Path:
        """Return the path."""
        return Path(super().parse_text(text))

    def parse_toml(self, raw: object) -> Path:
        """Return the path, with a leading `~` replaced by this user's home."""
        path = super().parse_toml(raw)
        if not str(path).startswith(("/", "~/")):
            raise InvalidValue((raw, "a path that begins with / or ~/"))
        return Path(path).expanduser()


class HostAndPort(ValueType):
    """The address of another node: a host, and a port or the default one."""

    def __init__(self, port_default: int = PEER_PORT) -> None:
        super().__init__(
            "HOST[:PORT]",
            "HOST, HOST:PORT or [IPV6]:PORT",
            r"(?:\[(?P<v6>[0-9a-fA-F:.%\w]+)\]|(?P<host>[^:\s]+))(?::(?P<port>[0-9]{1,5}))?",
        )
        self._port_default = port_default

    def parse_text(self, text: str) -> tuple[str, int]:
        """Return host and port."""
        match = self._pattern.fullmatch(text)
        port = int(match["port"] or self._port_default) if match else 0
        host = (match["v6"] or match["host"]) if match else ""
        if not host or not is_host(host) or not 1 <= port <= PORT_MAX:
            raise InvalidValue((text, self.allowed))
        return host, port

    def format(self, value: tuple[str, int]) -> str:
        """Return `HOST:PORT`."""
        return host_and_port(*value)


class Amount(ValueType):
    """A whole number within bounds, with a unit."""

    def __init__(
        self,
        metavar: str = "N",
        unit: Unit = COUNT,
        *,
        minimum: int = 0,
        maximum: int | None = None,
    ) -> None:
        ends = f"at least {unit.format(minimum)}"
        if maximum is not None:
            ends = f"from {unit.format(minimum)} to {unit.format(maximum)}"
        super().__init__(metavar, f"{unit.example}, {ends}")
        self._unit, self._minimum, self._maximum = unit, minimum, maximum

    def parse_text(self, text: str) -> int:
        """Return the number."""
        return self._check_range(self._unit.parse(text), text)

    def parse_toml(self, raw: object) -> int:
        """Return the number; text has a unit."""
        if isinstance(raw, str) and self._unit is not COUNT:
            return self.parse_text(raw)
        return self._check_range(raw if type(raw) is int else None, raw)

    def format(self, value: int) -> str:
        """Return the number with the largest unit that divides it."""
        return self._unit.format(value)

    def _check_range(self, value: int | None, raw: object) -> int:
        most = self._maximum
        if (
            value is None
            or value < self._minimum
            or (most is not None and value > most)
        ):
            raise InvalidValue((raw, self.allowed))
        return value


class Boolean(ValueType):
    """True or false; as flags a pair, such as `--electable` and `--no-electable`."""

    def __init__(self) -> None:
        super().__init__("", "true or false", "true|false")

    def parse_text(self, text: str) -> bool:
        """Return True if the text is `true`."""
        return bool(super().parse_text(text) == "true")

    def parse_flag(self, raw: bool) -> bool:  # noqa: FBT001  as the others
        """Return True if the flag is set."""
        return raw

    def parse_toml(self, raw: object) -> bool:
        """Return True if the item is `true`."""
        if not isinstance(raw, bool):
            raise InvalidValue((raw, self.allowed))
        return raw

    def format(self, value: bool) -> str:  # noqa: FBT001  as the others
        """Return `true` or `false`, as in TOML."""
        return str(value).lower()


class ListOf(ValueType):
    """Several values of one type: a repeated flag, a TOML list, or text with commas."""

    def __init__(
        self,
        value_type: ValueType,
        *,
        items_max: int = 1000,
        has_unique_keys: bool = False,
    ) -> None:
        """Allow `items_max` values; `has_unique_keys`: each KEY of KEY=VALUE once."""
        super().__init__(value_type.metavar, value_type.allowed)
        self._value_type = value_type
        self._items_max = items_max
        self._has_unique_keys = has_unique_keys

    def parse_text(self, text: str) -> tuple[Any, ...]:
        """Return the values of a text with commas."""
        return self.parse_flag(tuple(part.strip() for part in text.split(",")))

    def parse_flag(self, raw: tuple[str, ...]) -> tuple[Any, ...]:
        """Return one value for each use of the flag."""
        return self._parse_each(raw, self._value_type.parse_text)

    def parse_toml(self, raw: object) -> tuple[Any, ...]:
        """Return one value for each item of the list."""
        if not isinstance(raw, list):
            raise InvalidValue((raw, 'a list like ["a", "b"]'))
        return self._parse_each(tuple(raw), self._value_type.parse_toml)

    def format(self, value: tuple[Any, ...]) -> str:
        """Return the values, separated by commas."""
        return ",".join(map(self._value_type.format, value))

    def _parse_each(
        self, raws: tuple[Any, ...], read: Callable[[Any], Any]
    ) -> tuple[Any, ...]:
        values: list[Any] = []
        faults: list[tuple[object, str]] = []
        for raw in raws:
            try:
                values.append(read(raw))
            except InvalidValue as error:
                faults += error.faults
        keys = [str(value).partition("=")[0] for value in values]
        if self._has_unique_keys and len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            faults.append((twice, "each once"))
        if len(raws) > self._items_max:
            faults.append((f"{len(raws)} values", f"at most {self._items_max}"))
        if faults:
            raise InvalidValue(*faults)
        return tuple(values)
