"""The picture of the demo: drawn like a terminal, and up to date."""

from __future__ import annotations

import re
import runpy
from xml.etree import ElementTree as ET

from tests.docs.blocks import ROOT, blocks_of, commands_of
from tests.docs.console import alike

SVG = "{http://www.w3.org/2000/svg}"
RECORD = runpy.run_path(str(ROOT / "docs" / "record.py"))


def parsed(picture: str) -> ET.Element:
    return ET.fromstring(picture)  # noqa: S314 (of our own)


def lines_at_the_end(picture: str) -> list[str]:
    """Return the visible lines of a static view."""
    texts = parsed(picture).iter(f"{SVG}text")
    return [" ".join(t.itertext()) for t in texts if t.get("visibility") != "hidden"]


def test_redrawn_line_is_shown_before_and_after() -> None:
    """A progress bar moves up a line, or to the line's start, and writes again."""
    chunks = [
        (0.5, "begun & <well>\r\n"),
        (1.0, "\x1b[32m--- \x1b[0m 10%\r\n"),
        (1.5, "\x1b[1A\r\x1b[2K\x1b[32m----\x1b[0m 99%\r\n"),
        (2.0, "done\r\n"),
    ]

    picture = RECORD["drawn"](RECORD["frames"]("make demo", chunks))

    at_the_end = [" ".join(line.split()) for line in lines_at_the_end(picture)]
    assert at_the_end == ["$ make demo", "begun & <well>", "---- 99%", "done"]
    assert "---" in picture.replace("----", "")
    assert 'values="hidden;visible;hidden"' in picture


def test_picture_matches_the_current_demo() -> None:
    """Its end equals the output in the tutorial, which is compared with a real run."""
    picture = (ROOT / "docs" / "images" / "demo.svg").read_text()
    tutorial = (ROOT / "docs" / "tutorials" / "one-machine.md").read_text()
    (shown,) = (
        command.shown
        for block in blocks_of(tutorial)
        for command in commands_of(block)
        if command.text == "make demo"
    )

    assert alike(["$ make demo", *shown], lines_at_the_end(picture))


def test_picture_is_self_contained() -> None:
    """It is shown where no script runs, and fetches nothing."""
    picture = (ROOT / "docs" / "images" / "demo.svg").read_text()
    tags = {element.tag.removeprefix(SVG) for element in parsed(picture).iter()}

    assert tags == {"svg", "rect", "text", "tspan", "animate"}
    assert not re.search(r"href|url\(|@import", picture)
    assert len(picture) < 100_000
