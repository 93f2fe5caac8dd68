"""The unit files of the service: their text, manual changes and diffs.

Texts come from `systemd/`, which is part of the package. Each file ends with a trailer
that has its flags and a digest, so that manual changes are detected and kept.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import octaskly
from octaskly.cli.service.systemd import SOCKET_UNIT, UNIT, Scope
from octaskly.config.defaults import API_PORT
from octaskly.config.paths import xdg_folder
from octaskly.errors import ConfigError

_PACKAGE = Path(octaskly.__file__).parent
_FOLDERS = (_PACKAGE / "systemd", _PACKAGE.parent / "systemd")  #: wheel, clone
_EXEC = re.compile(r"^ExecStart=.*$", re.MULTILINE)
_LISTEN = re.compile(rf"^(ListenStream=.*):{API_PORT}$", re.MULTILINE)
_PORT_FLAG = "--api-port"
_TRAILER = re.compile(
    r"^# Written by `octaskly service install`.*\n"
    r"# flags: (?P<flags>.*)\n# sha256: (?P<digest>[0-9a-f]{64})\n\Z",
    re.MULTILINE,
)
_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@+-]+")


class UnitFile(NamedTuple):
    """A file and the text that it should have."""

    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class InstalledUnit:
    """A unit file on disk."""

    text: str  #: without the trailer
    flags: tuple[str, ...] | None  #: of the agent; None if Octaskly did not write it
    is_ours: bool  #: unchanged since Octaskly wrote it

    @property
    def program(self) -> Path | None:
        """Path of the program that the unit starts."""
        match = re.search(r'^ExecStart="?([^\s"]+)', self.text, re.MULTILINE)
        return Path(match[1].replace("%%", "%")) if match else None


def unit_path(scope: Scope, environ: Mapping[str, str]) -> Path:
    """Return the path of the unit."""
    if scope is Scope.SYSTEM:
        return Path("/etc/systemd/system") / UNIT
    return xdg_folder(environ, "XDG_CONFIG_HOME", ".config") / "systemd" / "user" / UNIT


def socket_path(scope: Scope, environ: Mapping[str, str]) -> Path:
    """Return the path of `octaskly.socket`, which holds the API port."""
    return unit_path(scope, environ).with_name(SOCKET_UNIT)


def make_unit_files(
    scope: Scope,
    environ: Mapping[str, str],
    program: Path,
    flags: Sequence[str],
    api_port: int = API_PORT,
) -> list[UnitFile]:
    """Return the files of the service, the unit first.

    `api_port` goes into the socket unit alone, so that it is set in one place.

    Raises:
        ConfigError: this installation has no unit files.
    """
    source = "octaskly.service" if scope is Scope.SYSTEM else "octaskly-user.service"
    command = " ".join(
        quote_for_systemd(word)
        for word in (str(program), "agent", *_without_port(flags))
    )
    unit = _EXEC.sub(lambda _: f"ExecStart={command}", _read_template(source), count=1)
    port = _LISTEN.sub(rf"\g<1>:{api_port}", _read_template(SOCKET_UNIT))
    files = [
        UnitFile(unit_path(scope, environ), with_trailer(unit, flags)),
        UnitFile(socket_path(scope, environ), with_trailer(port, ())),
    ]
    if scope is Scope.SYSTEM:
        for kind in ("sysusers.d", "tmpfiles.d"):
            text = with_trailer(_read_template(f"{kind}/octaskly.conf"), ())
            files.append(UnitFile(Path("/etc") / kind / "octaskly.conf", text))
    return files


def with_trailer(text: str, flags: Sequence[str]) -> str:
    """Return a text with the trailer that reveals manual changes."""
    digest = _digest(text, flags)
    return (
        f"{text.rstrip()}\n\n"
        "# Written by `octaskly service install`; put changes into a "
        "drop-in: systemctl edit\n"
        f"# flags: {json.dumps(list(flags))}\n# sha256: {digest}\n"
    )


def read_installed_unit(path: Path) -> InstalledUnit | None:
    """Return the installed unit, None if there is none."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    match = _TRAILER.search(text)
    if match is None:
        return InstalledUnit(text, None, is_ours=False)
    try:
        flags = tuple(str(flag) for flag in json.loads(match["flags"]))
    except (ValueError, TypeError):
        return InstalledUnit(text, None, is_ours=False)
    is_ours = _digest(text[: match.start()], flags) == match["digest"]
    return InstalledUnit(text[: match.start()].rstrip(), flags, is_ours=is_ours)


def diff(draft: UnitFile) -> str:
    """Return the change of the file as a unified diff, empty if there is none."""
    before = read_installed_unit(draft.path)
    old = before.text if before else ""
    lines = difflib.unified_diff(
        old.splitlines(),
        _TRAILER.sub("", draft.text).rstrip().splitlines(),
        str(draft.path) if before else os.devnull,
        str(draft.path),
        n=1,
        lineterm="",
    )
    return "\n".join(lines)


def write_unit_file(draft: UnitFile) -> None:
    """Write a file atomically.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        draft.path.parent.mkdir(parents=True, exist_ok=True)
        new = draft.path.with_name(f".{draft.path.name}.new")
        new.write_text(draft.text)
        new.chmod(0o644)
        new.replace(draft.path)
    except OSError as error:
        raise ConfigError(
            f"cannot write {draft.path}: {error.strerror}",
            hint=f"ls -ld {draft.path.parent}    who can write there?",
        ) from error


def quote_for_systemd(word: str) -> str:
    """Return a word quoted for systemd, see "Quoting" in systemd.syntax(7)."""
    word = word.replace("%", "%%").replace("$", "$$")
    if _PLAIN.fullmatch(word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _digest(text: str, flags: Sequence[str]) -> str:
    body = f"{text.rstrip()}\n{json.dumps(list(flags))}"
    return hashlib.sha256(body.encode()).hexdigest()


def _without_port(flags: Sequence[str]) -> list[str]:
    words = list(flags)
    while _PORT_FLAG in words:
        at = words.index(_PORT_FLAG)
        del words[at : at + 2]
    return words


def _read_template(name: str) -> str:
    for folder in _FOLDERS:
        if (folder / name).is_file():
            return (folder / name).read_text()
    raise ConfigError(
        f"this installation of Octaskly lacks systemd/{name}",
        hint="pipx install --force octaskly    installs it",
    )
