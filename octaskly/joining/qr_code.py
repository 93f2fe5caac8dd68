"""QR codes of invites, for the camera of the machine that is invited."""

from __future__ import annotations

import io

QUIET_MODULES = 2  #: white around a code that is drawn, in modules


def qr_rows(text: str) -> list[str]:
    """Return the modules of a QR code, row by row: `1` is dark."""
    import segno  # noqa: PLC0415 - only invites need it

    rows = segno.make(text, micro=False).matrix
    return ["".join("1" if module else "0" for module in row) for row in rows]


def qr_terminal(text: str) -> str:
    """Return a QR code of half blocks for a terminal."""
    import segno  # noqa: PLC0415 - as above

    shown = io.StringIO()
    segno.make(text, micro=False).terminal(
        out=shown, compact=True, border=QUIET_MODULES
    )
    return shown.getvalue()
