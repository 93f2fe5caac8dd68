"""One node's discovery in a process of its own, for tests.

It writes a JSON line for each report of discovery, and reads commands from standard
input: `browse`, `rest`, `dispatcher TERM`, `state`. Its end closes it.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter

from octaskly.core.effects import LogLine
from octaskly.core.events import PeersDiscovered
from octaskly.core.model.ids import NodeId
from octaskly.core.model.nodes import NodeInfo
from octaskly.mesh.discovery.discovery import Discovery
from octaskly.mesh.discovery.interfaces import LocalAddress
from octaskly.mesh.discovery.mdns_scan import scan_meshes
from octaskly.system.clock import SystemClock

CLOCK = SystemClock()


def say(kind: str, **fields: object) -> None:
    """Write one line."""
    print(json.dumps({"kind": kind, "at": CLOCK.now().mono_s, **fields}), flush=True)


def seen(event: PeersDiscovered) -> None:
    for advert in event.hints:
        say(
            "seen",
            node=advert.node,
            addresses=[list(address) for address in advert.addresses],
            is_dispatcher=advert.is_dispatcher,
            term=advert.term,
        )


def noted(note: LogLine) -> None:
    say("note", level=note.level, event=note.event, fields=dict(note.fields))


def moved(addresses: tuple[LocalAddress, ...]) -> None:
    say("moved", hosts=[one.host for one in addresses])


def obey(discovery: Discovery, word: str, *rest: str) -> None:
    """Execute a line of standard input."""
    if word == "dispatcher":
        discovery.advertise(is_dispatcher=True, term=int(rest[0]))
    elif word == "state":
        meshes = Counter(one.mesh for one in discovery._nodes._records.values())
        say(
            "state",
            meshes={mesh: count for mesh, count in meshes.items() if mesh},
            unpaired=meshes[None],
            in_sight=len(discovery._nodes),
            hosts=[one.host for one in discovery._local_addresses.current],
            is_degraded=discovery._mdns is None,
        )
    else:
        discovery.set_browsing(is_wanted=word == "browse")


async def run(options: argparse.Namespace) -> None:
    if options.look:
        found = await scan_meshes(options.look, options.interface)
        say("sightings", meshes=sorted(found))
        return
    node = NodeInfo(
        id=NodeId(options.id),
        boot=options.boot,
        name=options.id,
        slots=1,
        version="0",
        peer_port=options.port,
        lan_port=3443,
    )
    discovery = Discovery(
        node=node,
        mesh_id=options.mesh,
        clock=CLOCK,
        on_event=seen,
        on_note=noted,
        interfaces=options.interface,
        on_other_mesh=lambda mesh: say("other", mesh=mesh),
        on_addresses=moved,
        on_clone=lambda places: say("clone", ports=[place.port for place in places]),
        poll_s=0.2,
        debounce_s=0.2,
    )
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with asyncio.TaskGroup() as tasks:
        await discovery.start(tasks)
        discovery.set_browsing(is_wanted=True)
        say("started")
        async for line in reader:
            obey(discovery, *line.decode().split())
        await discovery.close()
        say("closed")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--id", default="a" * 16)
    parser.add_argument("--boot", default="boot-1")
    parser.add_argument("--mesh")
    parser.add_argument("--port", type=int, default=7878)
    parser.add_argument("--interface", action="append", default=[])
    parser.add_argument("--look", type=float, default=0.0)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
