"""Validation and JSON of the uploaded files that a task names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from octaskly.api.schemas.base import SHA256, InvalidField, RequestBody, openapi_schema
from octaskly.core.model.task_options import UploadedFile
from octaskly.rest.tasks import TaskFile

FILES_MAX: Final = 256
_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,128}")
_NODE = re.compile(r"[A-Za-z0-9._-]{1,64}")


class FileIn(RequestBody, gc=False):
    """A file that the node places in the attempt's scratch folder."""

    path: Annotated[str, openapi_schema(pattern=f"^{_NAME.pattern}$")]
    sha256: Annotated[str, openapi_schema(pattern=f"^{SHA256.pattern}$")]
    node: Annotated[str, openapi_schema(pattern=f"^{_NODE.pattern}$")]


Files = Annotated[tuple[FileIn, ...], msgspec.Meta(max_length=FILES_MAX)]

FILES_HINT: Final = (
    f"at most {FILES_MAX} objects with path (a name of 1 to 128 characters of A-Z a-z"
    " 0-9 . _ -), sha256 and node, by name or id; with `workdir`: scratch"
)


def parse_files(
    files_in: Iterable[FileIn], *, is_scratch: bool
) -> tuple[UploadedFile, ...]:
    """Return the uploaded files that a task names.

    Raises:
        InvalidField: a file is invalid.
    """
    files: dict[str, UploadedFile] = {}
    for index, file in enumerate(files_in):
        if (why := _file_error(file)) is not None:
            raise InvalidField(f"files[{index}]", why)
        if file.path in files:
            raise InvalidField(f"files[{index}]", f"two files are called {file.path}")
        files[file.path] = UploadedFile(
            path=file.path, sha256=file.sha256, node=file.node
        )
    if files and not is_scratch:
        raise InvalidField(
            "files", "files need a scratch folder: set `workdir` to scratch"
        )
    return tuple(files.values())


def check_no_input_overlap(files_in: Iterable[FileIn], inputs: Iterable[str]) -> None:
    """Raise `InvalidField` if a file and an input have the same name in the folder."""
    if not files_in:  # Most tasks name no files.
        return
    taken = {path.removeprefix("./").partition("/")[0] for path in inputs}
    for index, file in enumerate(files_in):
        if file.path in taken:
            raise InvalidField(
                f"files[{index}]", f"an input has this name: {file.path}"
            )


def render_files(files: Iterable[UploadedFile]) -> list[TaskFile]:
    """Return the JSON of files."""
    return [TaskFile(path=f.path, sha256=f.sha256, node=f.node) for f in files]


def _file_error(file: FileIn) -> str | None:
    if not _NAME.fullmatch(file.path):
        return f"unusable name {file.path[:80]!r}"
    if not SHA256.fullmatch(file.sha256):
        return f"{file.sha256[:80]!r} is not a SHA-256 in hexadecimal"
    if not _NODE.fullmatch(file.node):
        return f"{file.node[:80]!r} is not a valid node name or id"
    return None
