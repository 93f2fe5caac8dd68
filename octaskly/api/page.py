"""The dashboard's files, which every node serves to everybody: they hold no data.

The table of them is made when the API starts, and nothing else is ever read for a
request: no path from outside reaches the disk.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import Final

from aiohttp import web

from octaskly.api.problems import status_problem
from octaskly.api.routing import Access, Call, Route

INDEX: Final = "index.html"
KINDS: Final[Mapping[str, str]] = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Endings of the files that are served; licences and lists of hashes are not."""

HEADERS: Final[Mapping[str, str]] = {
    # Scripts and styles come from here alone, data goes nowhere else, and no text
    # becomes markup: what a task wrote stays text, whatever a view does with it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A new version of the agent must be seen at once; its hash spares the transfer.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file as it is sent."""

    body: bytes
    content_type: str
    etag: str


@functools.cache
def assets() -> Mapping[str, Asset]:
    """Return all files by their path below `/static`."""
    return dict(_read(files("octaskly") / "static", PurePosixPath()))


def _read(folder: Traversable, place: PurePosixPath) -> Iterator[tuple[str, Asset]]:
    for entry in folder.iterdir():
        path = place / entry.name
        if entry.is_dir():
            yield from _read(entry, path)
        elif (kind := KINDS.get(path.suffix)) is not None:
            body = entry.read_bytes()
            yield str(path), Asset(body, kind, hashlib.sha256(body).hexdigest()[:32])


async def show(call: Call) -> web.StreamResponse:
    """Return a file of the dashboard."""
    asset = assets().get(call.request.match_info.get("file", INDEX))
    if asset is None:
        raise status_problem(HTTPStatus.NOT_FOUND, "there is no such file")
    headers = {**HEADERS, "ETag": f'"{asset.etag}"'}
    known = call.request.if_none_match or ()
    if any(one.value in (asset.etag, "*") for one in known):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    headers["Content-Type"] = asset.content_type
    return web.Response(body=asset.body, headers=headers)


ROUTES = tuple(
    Route(
        method="GET",
        path=path,
        perform=show,
        access=Access.OPEN,
        is_local=True,
        query=None,  # Bookmarks carry all kinds of things.
        is_for_people=True,
        answers={200: None, 304: None},
        media="text/html",
    )
    for path in ("/", "/static/{file:.+}")
)
