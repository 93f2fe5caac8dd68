"""Cursors of the audit log: each id of an entry can be one."""

from __future__ import annotations

import pytest

from octaskly.agent.gateway.audit import VISIT_ACTION, _parse_cursor


def test_an_entry_about_a_visitor_can_be_the_last_of_a_page() -> None:
    """Its id has spaces; a reader of the log must be able to go on after it."""
    key = f"{VISIT_ACTION}-visitor-abcd-1790000000000-task-014-a3dd176b"

    assert _parse_cursor(f"1f-{key}") == (0x1F, key)


@pytest.mark.parametrize("cursor", ["", "x-key", "1f-", "1f-a\nb", "1f-\x1b[m"])
def test_other_text_is_no_cursor(cursor: str) -> None:
    """Clients send anything."""
    with pytest.raises(ValueError, match="not a cursor"):
        _parse_cursor(cursor)
