"""The API of a node that is in no mesh yet."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from octaskly.agent.join_service import MeshChangeCallbacks
from octaskly.agent.unpaired import serve_unpaired
from octaskly.client.local_agents import find_agent_socket
from octaskly.config.agent import load_agent_config
from octaskly.config.defaults import HEADER_S
from octaskly.system import log
from octaskly.system.clock import SystemClock
from octaskly.system.listening_sockets import LoopbackPort

STOPPED_DURING_SCAN = """
import asyncio, os, signal, sys
from octaskly.agent import main
from octaskly.config.agent import load_agent_config

async def scan(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.1)
    return frozenset()

main.scan_meshes = scan
flags = {"name": "ben", "state_dir": sys.argv[1] + "/ben", "interfaces": ("lo",)}
flags |= {"secret_file": sys.argv[1] + "/mesh.key", "api_port": "0"}
sys.exit(main.run(load_agent_config(flags, os.environ)))
"""


def test_a_stop_during_the_first_scan_creates_no_mesh(tmp_path: Path) -> None:
    """The next start looks for a mesh again, instead of being in one of its own."""
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_DURING_SCAN, str(tmp_path)],
        env={**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        check=False,
    )

    assert done.returncode == 0
    assert not (tmp_path / "mesh.key").exists()
    assert not (tmp_path / "ben" / "log.db").exists()


def test_limits_and_timeouts_of_the_settings_hold_before_a_node_has_joined(
    tmp_path: Path,
) -> None:
    """They protect the local API at any time, so an unpaired node has them too."""
    # The start of an agent may block, so this is no async test.
    within, above = asyncio.run(serve_and_exchange(tmp_path))

    assert within.split()[1] == b"200"
    assert above.split()[1] == b"400"


async def serve_and_exchange(tmp_path: Path) -> tuple[bytes, bytes]:
    """Return the responses to a header field within and above the limit."""
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    flags = {
        "name": "ben",
        "state_dir": str(tmp_path / "ben"),
        "interfaces": ("lo",),
        "header_bytes": "4K",
        "header_s": "1",
    }
    config = load_agent_config(flags, environ)
    config.paths.state.mkdir()
    mesh_changes = MeshChangeCallbacks(lambda _: None, lambda: None)
    logger = log.configure("json", "error", environ)

    # Another user holds the port, so this node serves its socket only.
    port = LoopbackPort(taken_port=3000, holder="user eve")
    async with serve_unpaired(config, port, SystemClock(), logger, mesh_changes):
        path = find_agent_socket(environ, node=None, state_dir=config.paths.state)
        within = await exchange(path, field_bytes=3 << 10)
        above = await exchange(path, field_bytes=5 << 10)
        async with asyncio.timeout(HEADER_S / 2):
            idle, writer = await asyncio.open_unix_connection(path)
            assert await idle.read() == b""
            writer.close()
    return within, above


async def exchange(path: Path, *, field_bytes: int) -> bytes:
    """Return the response to a request with a header field of this size."""
    reader, writer = await asyncio.open_unix_connection(path)
    head = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    writer.write(f"{head}Made-Up: {'a' * field_bytes}\r\n\r\n".encode())
    try:
        return await reader.read()
    finally:
        writer.close()
