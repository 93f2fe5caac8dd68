"""Each code block of each page is run, or checked as far as it can be."""

from __future__ import annotations

import json
import re
import subprocess
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import yaml

from octaskly.config.agent import build_options
from octaskly.config.sources import read_settings_file
from tests.docs.blocks import PAGES, ROOT, RUN, SHELLS, Block, blocks_of
from tests.docs.console import Console
from tests.docs.test_pages_run import PAGES as ALONE
from tests.docs.test_pages_run import TWO_MACHINES
from tests.support.agents import Agent, until
from tests.support.conformance import DOCUMENT, conforms, validates

BLOCKS = [
    (page, block)
    for page in PAGES
    for block in blocks_of(page.read_text())
    if not block.stopped
]
SERVICE = "[Service]\nExecStart=/bin/true\n"  #: of a drop-in
TYPED = [
    page
    for page in PAGES
    if str(page.relative_to(ROOT)) not in (*ALONE, *TWO_MACHINES)
    and any(
        block.language in RUN and block.not_run is None
        for block in blocks_of(page.read_text())
    )
]


def shown(value: object) -> str:
    match value:
        case Path():
            return str(value.relative_to(ROOT))
        case Block():
            return f"line-{value.line}"
        case _:
            return str(value)


def of(*languages: str) -> list[tuple[Path, Block]]:
    return [(page, block) for page, block in BLOCKS if block.language in languages]


@pytest.mark.parametrize("page", sorted({page for page, _ in BLOCKS}), ids=shown)
def test_every_block_says_what_it_is(page: Path) -> None:
    """One of no language, or of one that nobody looks at here, could say anything."""
    known = {*SHELLS, "text", "json", "toml", "ini", "python", "yaml", "promql"}
    blocks = [block for where, block in BLOCKS if where == page]

    assert [b.line for b in blocks if b.language not in known] == []
    assert [b.line for b in blocks if b.language == "text" and not b.shown] == []
    assert [b.line for b in blocks if b.not_run == ""] == []


@pytest.mark.parametrize(("page", "block"), of(*SHELLS), ids=shown)
def test_a_shell_reads_each_command(page: Path, block: Block) -> None:
    """Also those that are not run: a quote too few is found here."""
    text = re.sub(r"^\$ ", "", block.text, flags=re.MULTILINE)
    if block.language == "console":
        text = "\n".join(re.findall(r"^\$ ((?:.*\\\n)*.*)$", block.text, re.MULTILINE))
    read = subprocess.run(
        ["bash", "-n"], input=text, capture_output=True, text=True, check=False
    )

    assert read.stderr == ""


@pytest.mark.parametrize(("page", "block"), of("json"), ids=shown)
def test_json_is_what_the_api_takes_or_answers(page: Path, block: Block) -> None:
    """A comment says of which route it is; the OpenAPI document knows its form."""
    data = json.loads(block.text)
    match (block.shown or "").split():
        case [method, path, status]:
            conforms(method, path, int(status), "application/json", block.text.encode())
        case [method, path]:
            taken = DOCUMENT["paths"][path][method.lower()]["requestBody"]
            validates(data, taken["content"]["application/json"]["schema"])
        case _:
            assert block.shown, f"{page}: no comment says what line {block.line} shows"


@pytest.mark.parametrize(("page", "block"), of("text"), ids=shown)
def test_events_of_a_stream_have_json_as_data(page: Path, block: Block) -> None:
    """Whoever writes a client by such a block, parses it."""
    for data in re.findall(r"^data: (.*)$", block.text, re.MULTILINE):
        json.loads(data)


@pytest.mark.parametrize(("page", "block"), of("toml"), ids=shown)
def test_a_file_of_settings_is_taken(page: Path, block: Block, tmp_path: Path) -> None:
    """As `octaskly config check` would."""
    file = tmp_path / "config.toml"
    file.write_text(block.text)
    file.chmod(0o600)
    faults: list[str] = []

    build_options(read_settings_file(file, faults), faults)

    assert faults == []


@pytest.mark.parametrize(("page", "block"), of("yaml"), ids=shown)
def test_yaml_can_be_read(page: Path, block: Block) -> None:
    """Whose it is knows more of it: tests/packages asks promtool of what is its own."""
    assert isinstance(yaml.safe_load(block.text), dict | list)


@pytest.mark.parametrize(("page", "block"), of("python"), ids=shown)
def test_python_is_python(page: Path, block: Block) -> None:
    """Also where it is not run."""
    compile(block.text, f"{shown(page)}:{block.line}", "exec")


@pytest.mark.parametrize(("page", "block"), of("ini"), ids=shown)
def test_a_unit_is_one_that_systemd_knows(
    page: Path, block: Block, tmp_path: Path
) -> None:
    """Section and directive, each by its name."""
    unit = tmp_path / "octaskly-block.service"
    text = block.text if "ExecStart=" in block.text else f"{block.text}\n{SERVICE}"
    unit.write_text(text)
    verified = subprocess.run(
        ["systemd-analyze", "verify", unit],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "Unknown" not in verified.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", TYPED, ids=shown)
def test_what_a_page_tells_to_type_works(
    page_mesh: tuple[Console, Agent], page: Path
) -> None:
    """Every command of it, in its order, from an empty folder."""
    shell, node = page_mesh

    def listed() -> Any:
        status, said = node.call("GET", "/api/v1/tokens")
        return said if status == HTTPStatus.OK else None

    # What the page before did may have left the mesh without a dispatcher.
    for token in until(listed, "somebody reigns")["tokens"]:
        node.call("DELETE", f"/api/v1/tokens/{token['name']}")
    token = node.call("POST", "/api/v1/tokens", {"role": "admin"})[1]["token"]
    shell.begin(f"rm -rf ~/work/* ~/bin/*; export OCTASKLY_TOKEN={token} TOKEN={token}")

    assert sum(shell.do(block) for block in blocks_of(page.read_text())) > 0
