"""The dialog of a machine that joins by words, which users compare on both machines.

It is a module of its own because its imports are slow, and no other command needs them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

import click

from octaskly.cli.output.render import note
from octaskly.cli.output.terminal import on_one_line, print_line
from octaskly.errors import MeshError
from octaskly.joining.join_by_code import JoinGrant
from octaskly.joining.join_by_words import (
    PendingComparison,
    receive_approval,
    wait_for_member,
)
from octaskly.mesh.discovery.mdns_scan import scan_meshes

BROWSE_S: Final = 1.0
CONFIRMATIONS: Final = {"y": True, "yes": True, "n": False, "no": False, "": False}


async def join_by_words(name: str, key: bytes, interfaces: Sequence[str]) -> JoinGrant:
    """Wait for a member, print the words, and join once both users have confirmed.

    Raises:
        PairingFailed: no member connected, or its user refused.
        MeshError: the user here refused.
    """
    meshes = await scan_meshes(BROWSE_S, interfaces)
    note(f"· visible meshes: {', '.join(sorted(meshes)) or 'none'}")
    note(f"· waiting; on a member: octaskly approve {name}")
    note("· the three words to compare appear once a member has connected")
    meeting = await wait_for_member(name, key, interfaces)
    member = meeting.member.name
    note(f"\n{member} answers. The words of this machine are:\n")
    note(f"    {meeting.words}\n")
    return await _confirm_while_waiting(meeting)


async def _confirm_while_waiting(meeting: PendingComparison) -> JoinGrant:
    """Ask the user, and stop asking if the member refuses meanwhile."""
    member = meeting.member.name
    approval = asyncio.ensure_future(receive_approval(meeting))
    try:
        while (is_same := await _read_confirmation(member, approval)) is None:
            note("y or n?")
        if not is_same:
            raise MeshError(
                "this machine did not join: the words differ",
                hint="octaskly join    again; if they differ again, an attacker is in "
                "the middle: use a code from `octaskly invite`",
            )
        if not approval.done():
            note(f"· waiting until somebody approves at {member}")
        return await approval
    finally:
        approval.cancel()
        meeting.conversation.close()


async def _read_confirmation(
    member: str, admission: asyncio.Future[JoinGrant]
) -> bool | None:
    """Return the user's answer, None if it is neither yes nor no.

    Raises:
        PairingFailed: the user of the member refused meanwhile.
        click.Abort: the terminal is closed.
    """
    loop = asyncio.get_running_loop()
    typed = asyncio.Event()
    asked = f"Does {on_one_line(member)} show the same words? [y/N]: "
    print_line(asked, is_error=True, end="")
    loop.add_reader(sys.stdin, typed.set)
    typing = asyncio.ensure_future(typed.wait())
    try:
        await asyncio.wait(
            (typing, *(() if admission.done() else (admission,))),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if admission.done() and admission.exception() is not None:
            print_line(is_error=True)
            admission.result()
        await typing
    finally:
        loop.remove_reader(sys.stdin)
        typing.cancel()
    line = sys.stdin.readline()
    if not line:
        raise click.Abort
    return CONFIRMATIONS.get(line.strip().lower())
