"""What a disk remembers of visitors, which have another id at each visit."""

from __future__ import annotations

from contextlib import closing

from octaskly.core.model.ids import NodeId
from octaskly.store.tables.node_state import (
    PEER_DAYS,
    PeerContact,
    forget_visitors,
    write_peers,
)
from tests.contract import log_kit as kit

AGO_MS = kit.WALL_MS - PEER_DAYS * 86_400_000


def test_a_visitor_is_forgotten_after_a_while_unless_its_tasks_are_listed() -> None:
    """A cluster may send thousands a day; lists show the names of those with tasks."""
    came_ms = {"member": 0, "visitor-gone": AGO_MS - 1, "visitor-new": AGO_MS}
    came_ms["visitor-busy"] = AGO_MS - 1
    with closing(kit.database()) as db:
        write_peers(db, [PeerContact(NodeId(n), n, (), t) for n, t in came_ms.items()])
        db.execute(
            "INSERT INTO counts VALUES (0, 'visitor-gone', 2, 0),"
            " (0, 'visitor-busy', 2, 1)"
        )

        forget_visitors(db, kit.WALL_MS)

        left = db.execute("SELECT id FROM peers ORDER BY id").fetchall()
    assert left == [("member",), ("visitor-busy",), ("visitor-new",)]
