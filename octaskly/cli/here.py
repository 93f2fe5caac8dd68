"""`--here`: tasks that run in the current folder, on nodes that have it, too."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from octaskly.cli.interrupts import interrupt_on_sigterm
from octaskly.cli.output.render import note
from octaskly.client.errors import Refused
from octaskly.client.flows import rest_calls
from octaskly.config.users import user_name
from octaskly.rest.mesh import Checkup

if TYPE_CHECKING:
    from octaskly.client import Session
    from octaskly.client.here_file import HereFile
    from octaskly.rest.client_types import Task

HERE_PREFIX: Final = ".octaskly-here-"  #: of files in folders of users

_NAME: Final = re.compile(rf"{re.escape(HERE_PREFIX)}[0-9a-f]{{32}}")


@contextmanager
def here_fields(
    key: str | None, *, is_read_only: bool, is_kept: bool
) -> Iterator[dict[str, Any]]:
    """Keep a file in the current folder during the block; yield the fields of tasks.

    Args:
        key: A key by which a submission may be repeated; it makes the same file.
        is_read_only: Tasks do not write to the folder.
        is_kept: Leave the file after a block without errors, for tasks that start
            later.
    """
    from octaskly.client.here_file import HereFile, name_from_key  # noqa: PLC0415

    name = None if key is None else name_from_key(key)
    with interrupt_on_sigterm():
        file = HereFile(name=name, is_read_only=is_read_only)
        try:
            yield file.fields
        except BaseException:
            file.remove()
            raise
        if not is_kept:
            file.remove()


def note_other_user(client: Session) -> None:
    """Say so if the node of this session runs tasks as another user."""
    with suppress(Refused):  # Only for clients on the same machine.
        agent = client.send_and_decode(
            rest_calls.Call("GET", rest_calls.CHECKUP), Checkup
        )
        me = user_name(os.geteuid())
        if agent.task_user not in ("", me):
            note(
                f"on {agent.name}, tasks run as {agent.task_user}, not as {me}:"
                " with that user's rights to this folder"
            )


def make_here_file_again(task: Task) -> HereFile | None:
    """Make the file of an ended task with `--here` again, in the current folder.

    Returns:
        None if the task ran in another folder.
    """
    from octaskly.client.here_file import HereFile, current_folder  # noqa: PLC0415

    same = task.same_folder
    if same is None or task.cwd != current_folder() or not _NAME.fullmatch(same.name):
        return None
    return HereFile(task.cwd, same.name, is_read_only=same.read_only)
