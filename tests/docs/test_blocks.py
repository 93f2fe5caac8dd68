"""Each code block of each page is run, or checked otherwise."""

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
from tests.docs.test_pages_run import TRAVELLING, TWO_MACHINES
from tests.support.agents import Agent, until
from tests.support.conformance import DOCUMENT, conforms, validates

BLOCKS = [
    (page, block)
    for page in PAGES
    for block in blocks_of(page.read_text())
    if block.text
]
SERVICE = "[Service]\nExecStart=/bin/true\n"  #: of a drop-in
TYPED = [
    page
    for page in PAGES
    if str(page.relative_to(ROOT)) not in (*ALONE, *TWO_MACHINES, *TRAVELLING)
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
def test_every_block_names_its_language(page: Path) -> None:
    """A block without a known language could contain anything."""
    known = {*SHELLS, "text", "json", "toml", "ini", "python", "yaml", "promql"}
    blocks = [block for where, block in BLOCKS if where == page]

    assert [b.line for b in blocks if b.language not in known] == []
    assert [b.line for b in blocks if b.language == "text" and not b.shown] == []
    assert [b.line for b in blocks if b.not_run == ""] == []


@pytest.mark.parametrize(("page", "block"), of(*SHELLS), ids=shown)
def test_shell_parses_each_command(page: Path, block: Block) -> None:
    """Also blocks that are not run: a missing quote is found here."""
    text = re.sub(r"^\$ ", "", block.text, flags=re.MULTILINE)
    if block.language == "console":
        text = "\n".join(re.findall(r"^\$ ((?:.*\\\n)*.*)$", block.text, re.MULTILINE))
    read = subprocess.run(
        ["bash", "-n"], input=text, capture_output=True, text=True, check=False
    )

    assert read.stderr == ""


@pytest.mark.parametrize(("page", "block"), of("json"), ids=shown)
def test_json_matches_the_schema_of_the_api(page: Path, block: Block) -> None:
    """A comment names the route; the OpenAPI document has its schema."""
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
    """Readers write clients that parse such a block."""
    for data in re.findall(r"^data: (.*)$", block.text, re.MULTILINE):
        json.loads(data)


@pytest.mark.parametrize(("page", "block"), of("toml"), ids=shown)
def test_settings_file_is_accepted(page: Path, block: Block, tmp_path: Path) -> None:
    """As `octaskly config check` would."""
    file = tmp_path / "config.toml"
    file.write_text(block.text)
    file.chmod(0o600)
    faults: list[str] = []

    build_options(read_settings_file(file, faults), faults)

    assert faults == []


@pytest.mark.parametrize(("page", "block"), of("yaml"), ids=shown)
def test_yaml_parses(page: Path, block: Block) -> None:
    """Its owner checks more: tests/packages runs promtool on the Prometheus files."""
    assert isinstance(yaml.safe_load(block.text), dict | list)


@pytest.mark.parametrize(("page", "block"), of("python"), ids=shown)
def test_python_block_parses(page: Path, block: Block) -> None:
    """Also if it is not run."""
    compile(block.text, f"{shown(page)}:{block.line}", "exec")


@pytest.mark.parametrize(("page", "block"), of("ini"), ids=shown)
def test_unit_has_directives_that_systemd_knows(
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
def test_commands_of_a_page_work(page_mesh: tuple[Console, Agent], page: Path) -> None:
    """Every command of a page runs in order, from an empty folder."""
    shell, node = page_mesh

    def listed() -> Any:
        status, said = node.call("GET", "/api/v1/tokens")
        return said if status == HTTPStatus.OK else None

    # The previous page may have left the mesh without a dispatcher.
    for token in until(listed, "there is a dispatcher")["tokens"]:
        node.call("DELETE", f"/api/v1/tokens/{token['name']}")
    token = node.call("POST", "/api/v1/tokens", {"role": "admin"})[1]["token"]
    shell.begin(f"rm -rf ~/work/* ~/bin/*; export OCTASKLY_TOKEN={token} TOKEN={token}")

    assert sum(shell.do(block) for block in blocks_of(page.read_text())) > 0
