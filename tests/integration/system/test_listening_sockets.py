"""Ports of an agent whose machine gets other addresses."""

from __future__ import annotations

import contextlib

from octaskly.system.listening_sockets import bind_port, move_port, port_of


def test_a_port_moves_to_the_addresses_that_a_machine_has() -> None:
    """A socket whose address is still there is used again; 192.0.2.1 is not there."""
    bound = bind_port("--port", requested=0, default=0, addresses=["127.0.0.1"])
    port = port_of(bound)

    moved = move_port(bound, port, ["192.0.2.1", "127.0.0.2", "127.0.0.1"])

    with contextlib.ExitStack() as stack:
        for each in moved:
            stack.enter_context(each)
        assert [each.getsockname() for each in moved] == [
            ("127.0.0.2", port),
            ("127.0.0.1", port),
        ]
        assert moved[1] is bound[0]
