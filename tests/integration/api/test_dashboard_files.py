"""The dashboard's files: access, caching and browser policy."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import pytest

import octaskly
from octaskly.api.routes.dashboard import assets
from tests.support.api_node import ApiNode, assert_hardened

STATIC = Path(octaskly.__file__).parent / "static"


def scripts() -> set[str]:
    """Return the served modules by their path in the package."""
    found = {str(file.relative_to(STATIC)) for file in STATIC.rglob("*.js")}
    assert found <= assets().keys()
    return found


async def test_the_page_loads_nothing_from_other_origins(node: ApiNode) -> None:
    """Every address in the page is one of ours, and its policy allows no other."""
    answer = await node.ask("GET", "/")

    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    linked = re.findall(r'(?:href|src)="([^"]*)"', answer.body.decode())
    assert linked
    for path in linked:
        assert (await node.ask("GET", path)).status == 200, path
    assert b"<script>" not in answer.body
    assert b"style=" not in answer.body


async def test_the_policy_of_the_page_allows_no_inline_or_foreign_code(
    node: ApiNode,
) -> None:
    """Output of a task cannot become a script, whatever a view does with it."""
    answer = await node.ask("GET", "/")

    assert_hardened(answer)
    policy = dict(
        rule.partition(" ")[::2]
        for rule in answer.headers["content-security-policy"].split("; ")
    )
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


async def test_the_page_names_all_its_files_by_their_hashes(node: ApiNode) -> None:
    """So browsers cache them for ever, and load all modules at once."""
    answer = await node.ask("GET", "/")

    linked = re.findall(r'(?:href|src)="([^"]*)"', answer.body.decode())
    modules = {path for path in linked if path.endswith(".js")}
    (version,) = {path.split("/")[2] for path in linked}
    assert answer.headers["cache-control"] == "no-cache"
    assert modules == {f"/static/{version}/{path}" for path in scripts()}
    for path in linked:
        file = await node.ask("GET", path)
        assert file.headers["cache-control"] == "public, max-age=31536000, immutable"


async def test_files_are_compressed_if_the_client_accepts_it(node: ApiNode) -> None:
    """The page is opened over mobile networks, too."""
    plain = await node.ask("GET", "/static/style.css")
    packed = await node.ask(
        "GET", "/static/style.css", headers={"Accept-Encoding": "gzip, br"}
    )

    assert gzip.decompress(packed.body) == plain.body
    assert packed.headers["content-encoding"] == "gzip"
    assert plain.headers["vary"] == packed.headers["vary"] == "Origin, Accept-Encoding"


async def test_a_file_is_sent_again_only_if_it_changed(node: ApiNode) -> None:
    """A browser revalidates a plain name each time, as the agent may be new."""
    first = await node.ask("GET", "/static/style.css")
    known = {"If-None-Match": first.headers["etag"]}

    second = await node.ask("GET", "/static/style.css", headers=known)
    other = await node.ask("GET", "/static/style.css", headers={"If-None-Match": '"x"'})

    assert first.headers["cache-control"] == "no-cache"
    assert (second.status, second.body) == (304, b"")
    assert (other.status, other.body) == (200, first.body)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../__init__.py",
        "/static/%2e%2e/__init__.py",
        "/static/..%2f__init__.py",
        "/static//etc/passwd",
        "/static/vendor/SHA256SUMS",
        "/static/app",
        "/static/app/views/%00",
    ],
)
async def test_only_files_of_the_page_are_served(node: ApiNode, path: str) -> None:
    """The table of files is made at the start; a path is only looked up in it."""
    assert (await node.ask("GET", path)).status == 404


async def test_the_page_accepts_only_reads(node: ApiNode) -> None:
    """No other method."""
    answer = await node.ask("POST", "/static/style.css", body={})

    assert answer.status == 405


def test_vendored_modules_match_their_list() -> None:
    """`packages/vendor.py` wrote both; copies must not be edited."""
    vendor = STATIC / "vendor"
    lines = (vendor / "SHA256SUMS").read_text().splitlines()
    listed = {name: hash_ for hash_, name in (line.split("  ") for line in lines)}

    assert listed == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in vendor.iterdir()
        if file.name != "SHA256SUMS"
    }


def test_modules_import_served_paths() -> None:
    """A bare name would need an import map, which the policy forbids."""
    imports = re.compile(r'(?:\bimport\s*\(?|\}\s*from\s+)"([^"]+)"')
    for path in scripts():
        file = STATIC / path
        for name in imports.findall(file.read_text()):
            assert name.startswith("."), f"{path}: {name}"
            assert (file.parent / name).resolve().is_file(), f"{path}: {name}"
