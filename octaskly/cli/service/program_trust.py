"""Ownership check of the program that a system service starts.

A root service that runs a file that a user can write gives that user root access.
Installers for users (`uv tool`, `pipx`) put programs into user-writable folders.
"""

from __future__ import annotations

import errno
import grp
import os
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import octaskly
from octaskly.config.users import user_name

HOMES = ("/home/", "/root/", "/run/user/")
"""Folders that `ProtectHome=yes` hides from the system unit."""

PROGRAM = "octaskly"
_LINKS_MAX = 40  #: limit of the kernel for one path
_ACL = "system.posix_acl_access"


class UntrustedPath(NamedTuple):
    """A path component of the program that users other than root can change."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


def console_script() -> Path | None:
    """Return the `octaskly` program of this Python, None if it is not installed."""
    schemes = (sysconfig.get_default_scheme(), f"{os.name}_user")
    for scheme in schemes:
        script = Path(sysconfig.get_path("scripts", scheme)) / PROGRAM
        if os.access(script, os.X_OK):
            return script.absolute()
    return None


def program_paths(script: Path) -> tuple[Path, ...]:
    """Return all paths that `script` runs or imports from, the script first.

    They include all of `sys.path`, because Python may import any module there.
    """
    package = Path(octaskly.__file__).parent
    places = (
        str(script),
        sys.executable,
        sys.prefix,
        sys.base_prefix,
        str(package),
        *sys.path,
    )
    return tuple(dict.fromkeys(Path(place) for place in places if place))


def find_untrusted_paths(paths: Iterable[Path]) -> Iterator[UntrustedPath]:
    """Yield the components of these paths that users other than root can change.

    The check covers every folder and link on the way, and everything below a module
    folder. A missing path is untrusted if a user could create it.
    """
    seen: set[Path] = set()
    for place in paths:
        yield from _first_untrusted(_path_components(place), seen)
        if _holds_modules(place):
            yield from _untrusted_below(place, seen)


def _holds_modules(place: Path) -> bool:
    """Return True if Python imports from the folder; prefixes may be all of `/usr`."""
    return place.is_dir() and str(place) not in (sys.prefix, sys.base_prefix)


def _untrusted_below(folder: Path, seen: set[Path]) -> Iterator[UntrustedPath]:
    ahead = [str(folder)]
    while ahead:
        try:
            entries = list(os.scandir(ahead.pop()))
        except OSError:
            continue  # It is gone, or Python cannot import from it either.
        for entry in entries:
            path = Path(entry.path)
            steps = _path_components(path) if entry.is_symlink() else (path,)
            yield from _first_untrusted(steps, seen)
            if entry.is_dir(follow_symlinks=False):
                ahead.append(entry.path)


def _first_untrusted(steps: Iterable[Path], seen: set[Path]) -> Iterator[UntrustedPath]:
    """Yield the first untrusted step; everything below it is untrusted too."""
    for step in steps:
        if step in seen:
            continue
        if why := _untrusted_reason(step):
            yield UntrustedPath(step, why)
            return
        seen.add(step)


def _path_components(path: Path) -> Iterator[Path]:
    """Yield each folder, link and file that the kernel passes on its way to `path`.

    Raises:
        OSError: symbolic links form a loop.
    """
    here, links = Path("/"), 0
    ahead = list(reversed(path.absolute().parts[1:]))
    yield here
    while ahead:
        part = ahead.pop()
        if part == "..":
            here = here.parent
            continue
        step = here / part
        yield step
        if not step.is_symlink():
            here = step
            continue
        links += 1
        if links > _LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = step.readlink()
        if target.is_absolute():
            here, target = Path("/"), target.relative_to("/")
        ahead += reversed(target.parts)


def _untrusted_reason(step: Path) -> str | None:
    """Return why root must not run this path, None if only root can change it."""
    if f"{step}/".startswith(HOMES):
        return "is in a home folder"
    try:
        status = step.lstat()
    except FileNotFoundError:
        return None  # Creating it needs write access to its folder, checked before.
    if status.st_uid != 0:
        return f"belongs to user {user_name(status.st_uid)}"
    if stat.S_ISLNK(status.st_mode):
        return None  # Changing a link needs write access to its folder.
    if status.st_mode & stat.S_IWOTH:
        return "may be written by everybody"
    if status.st_mode & stat.S_IWGRP and status.st_gid != 0:
        return f"may be written by the group {_group(status.st_gid)}"
    if status.st_mode & stat.S_IWGRP and _has_acl(step):
        return "may be written by those on its access list"
    return None


def _has_acl(step: Path) -> bool:
    try:
        return bool(os.getxattr(step, _ACL))
    except OSError:
        return False  # No list, or the file system does not support lists.


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
