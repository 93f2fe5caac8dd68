"""The joiner's dialog where words are compared: people here and at a member answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

import click

from octaskly.agent.asking import Meeting, meet, receive
from octaskly.agent.joining import Admitted
from octaskly.cli.render import note, printable
from octaskly.errors import MeshError
from octaskly.mesh.looking import sightings

LOOK_S: Final = 1.0
ANSWERS: Final = {"y": True, "yes": True, "n": False, "no": False, "": False}


async def by_words(name: str, key: bytes, interfaces: Sequence[str]) -> Admitted:
    """Wait for a member, show the words, and get in once both sides have said yes.

    Raises:
        PairingFailed: no member came, or somebody at it said no.
        MeshError: somebody here said no.
    """
    meshes = await sightings(LOOK_S, interfaces)
    note(f"· meshes in sight: {', '.join(sorted(meshes)) or 'none'}")
    note(f"· waiting; on a member: octaskly approve {name}")
    note("· three words to compare come here as soon as a member looks")
    meeting = await meet(name, key, interfaces)
    member = meeting.member.name
    note(f"\n{member} answers. The words of this machine are:\n")
    note(f"    {meeting.words}\n")
    return await _admitted(meeting)


async def _admitted(meeting: Meeting) -> Admitted:
    """Ask here while the member is heard: what it refuses needs no answer any more."""
    member = meeting.member.name
    hearing = asyncio.ensure_future(receive(meeting))
    try:
        while (is_same := await _answer(member, hearing)) is None:
            note("y or n?")
        if not is_same:
            raise MeshError(
                "this machine did not join: the words differ",
                hint="octaskly join    once more; if they differ again, somebody is in "
                "the middle: use a code of `octaskly invite`",
            )
        if not hearing.done():
            note(f"· waiting until somebody approves at {member}")
        return await hearing
    finally:
        hearing.cancel()
        meeting.conversation.close()


async def _answer(member: str, hearing: asyncio.Future[Admitted]) -> bool | None:
    """Return what somebody types; None: it is no answer.

    Raises:
        PairingFailed: somebody at the member said no meanwhile.
        click.Abort: the terminal is closed.
    """
    loop = asyncio.get_running_loop()
    typed = asyncio.Event()
    asked = f"Does {printable(member)} show the same words? [y/N]: "
    click.echo(asked, nl=False, err=True)
    loop.add_reader(sys.stdin, typed.set)
    typing = asyncio.ensure_future(typed.wait())
    try:
        await asyncio.wait(
            (typing, *(() if hearing.done() else (hearing,))),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if hearing.done() and hearing.exception() is not None:
            click.echo(err=True)
            hearing.result()
        await typing
    finally:
        loop.remove_reader(sys.stdin)
        typing.cancel()
    line = sys.stdin.readline()
    if not line:
        raise click.Abort
    return ANSWERS.get(line.strip().lower())
