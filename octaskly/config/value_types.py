"""The ways in which a value is written, in a flag, a variable and a TOML file.

A kind reads text (flags, variables) and TOML values, and says what it takes. A file is
read strictly: `slots = "8"` is refused there, since TOML has numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octaskly.config.defaults import PEER_PORT, PORT_MAX
from octaskly.config.units import COUNT, Unit, host_and_port, is_host


class Unusable(ValueError):
    """Values that a kind does not take, each with what is allowed instead."""

    def __init__(self, *faults: tuple[object, str]) -> None:
        super().__init__(
            "; ".join(f"{value!r}: {allowed}" for value, allowed in faults)
        )
        self.faults = faults


class Kind:
    """One way to write a value; as it stands, text that fits a pattern.

    Args:
        metavar: Stands for a value in what `--help` says.
        allowed: What is taken, in words.
        pattern: What all of the text must fit.
    """

    def __init__(self, metavar: str, allowed: str, pattern: str = r"[^\s,]+") -> None:
        self.metavar = metavar
        self.allowed = allowed
        self._pattern = re.compile(pattern)

    def of_text(self, text: str) -> Any:
        """Return the value that text means.

        Raises:
            Unusable: it means none.
        """
        if not self._pattern.fullmatch(text):
            raise Unusable((text, self.allowed))
        return text

    def of_flag(self, raw: Any) -> Any:
        """Return the value of a flag; `Unusable` as above."""
        return self.of_text(str(raw))

    def of_toml(self, raw: object) -> Any:
        """Return the value that is written so in a TOML file.

        Raises:
            Unusable: there is none.
        """
        if not isinstance(raw, str):
            raise Unusable((raw, f"{self.allowed}, in quotes"))
        return self.of_text(raw)

    def show(self, value: Any) -> str:
        """Return the text that means this value."""
        return str(value)


class OneOf(Kind):
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        super().__init__(
            f"[{'|'.join(words)}]",
            f"{', '.join(words[:-1])} or {words[-1]}",
            "|".join(words),
        )
        self.words = words


class Place(Kind):
    """A file or folder.

    What a file of settings names must not depend on where the agent was started.
    """

    def of_text(self, text: str) -> Path:
        """Return the path."""
        return Path(super().of_text(text))

    def of_toml(self, raw: object) -> Path:
        """Return the path; a leading `~` is this user's home."""
        path = super().of_toml(raw)
        if not str(path).startswith(("/", "~/")):
            raise Unusable((raw, "a path that begins with / or ~/"))
        return Path(path).expanduser()


class Peer(Kind):
    """Where another node is: its host and a port, the peer port if not given."""

    def __init__(self, port_default: int = PEER_PORT) -> None:
        super().__init__(
            "HOST[:PORT]",
            "HOST, HOST:PORT or [IPV6]:PORT",
            r"(?:\[(?P<v6>[0-9a-fA-F:.%\w]+)\]|(?P<host>[^:\s]+))(?::(?P<port>[0-9]{1,5}))?",
        )
        self._port_default = port_default

    def of_text(self, text: str) -> tuple[str, int]:
        """Return host and port."""
        match = self._pattern.fullmatch(text)
        port = int(match["port"] or self._port_default) if match else 0
        host = (match["v6"] or match["host"]) if match else ""
        if not host or not is_host(host) or not 1 <= port <= PORT_MAX:
            raise Unusable((text, self.allowed))
        return host, port

    def show(self, value: tuple[str, int]) -> str:
        """Return host and port with a colon between."""
        return host_and_port(*value)


class Amount(Kind):
    """A whole number within bounds, in some unit."""

    def __init__(
        self,
        metavar: str = "N",
        unit: Unit = COUNT,
        *,
        least: int = 0,
        most: int | None = None,
    ) -> None:
        ends = f"at least {unit.show(least)}"
        if most is not None:
            ends = f"from {unit.show(least)} to {unit.show(most)}"
        super().__init__(metavar, f"{unit.example}, {ends}")
        self._unit, self._least, self._most = unit, least, most

    def of_text(self, text: str) -> int:
        """Return the number."""
        return self._within(self._unit.parse(text), text)

    def of_toml(self, raw: object) -> int:
        """Return the number; text has a unit."""
        if isinstance(raw, str) and self._unit is not COUNT:
            return self.of_text(raw)
        return self._within(raw if type(raw) is int else None, raw)

    def show(self, value: int) -> str:
        """Return the number with the unit that makes it short."""
        return self._unit.show(value)

    def _within(self, value: int | None, raw: object) -> int:
        most = self._most
        if value is None or value < self._least or (most is not None and value > most):
            raise Unusable((raw, self.allowed))
        return value


class Switch(Kind):
    """Yes or no; as a flag it is a pair, `--electable` and `--no-electable`."""

    def __init__(self) -> None:
        super().__init__("", "true or false", "true|false")

    def of_text(self, text: str) -> bool:
        """Return the truth value."""
        return bool(super().of_text(text) == "true")

    def of_flag(self, raw: bool) -> bool:  # noqa: FBT001  as the others
        """Return which of the pair it was."""
        return raw

    def of_toml(self, raw: object) -> bool:
        """Return the truth value."""
        if not isinstance(raw, bool):
            raise Unusable((raw, self.allowed))
        return raw

    def show(self, value: bool) -> str:  # noqa: FBT001  as the others
        """Return the word of TOML."""
        return str(value).lower()


class Many(Kind):
    """Several values of a kind: a repeatable flag, a list, text with commas between."""

    def __init__(
        self, kind: Kind, *, most: int = 1000, is_each_once: bool = False
    ) -> None:
        """Take up to `most`; `is_each_once`: none, or no KEY of KEY=VALUE, twice."""
        super().__init__(kind.metavar, kind.allowed)
        self._kind = kind
        self._most = most
        self._is_each_once = is_each_once

    def of_text(self, text: str) -> tuple[Any, ...]:
        """Return the values between commas."""
        return self.of_flag(tuple(part.strip() for part in text.split(",")))

    def of_flag(self, raw: tuple[str, ...]) -> tuple[Any, ...]:
        """Return a value for each time that the flag was given."""
        return self._each(raw, self._kind.of_text)

    def of_toml(self, raw: object) -> tuple[Any, ...]:
        """Return a value for each item."""
        if not isinstance(raw, list):
            raise Unusable((raw, 'a list like ["a", "b"]'))
        return self._each(tuple(raw), self._kind.of_toml)

    def show(self, value: tuple[Any, ...]) -> str:
        """Return the values with commas between."""
        return ",".join(map(self._kind.show, value))

    def _each(
        self, raws: tuple[Any, ...], read: Callable[[Any], Any]
    ) -> tuple[Any, ...]:
        values: list[Any] = []
        faults: list[tuple[object, str]] = []
        for raw in raws:
            try:
                values.append(read(raw))
            except Unusable as error:
                faults += error.faults
        keys = [str(value).partition("=")[0] for value in values]
        if self._is_each_once and len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            faults.append((twice, "each once"))
        if len(raws) > self._most:
            faults.append((f"{len(raws)} values", f"at most {self._most}"))
        if faults:
            raise Unusable(*faults)
        return tuple(values)
