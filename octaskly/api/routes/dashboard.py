"""Dashboard files, which every node serves without authentication: they hold no data.

The table of files is built when the API starts, and requests read only this table. So
no path in a request reaches the disk.

The page refers to its files by URLs with a hash of all files. So browsers may cache
them forever, and a new version of the agent still takes effect at once.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import Final

from aiohttp import web

from octaskly.api.http.handler_types import Access, Request, Route
from octaskly.api.problems import status_problem
from octaskly.api.security import route_cost

INDEX: Final = "index.html"
ROOT: Final = b"/static/"
PRELOADS: Final = b"<!-- preloads -->"
CONTENT_TYPES: Final[Mapping[str, str]] = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Suffixes of the files that are served; licences and lists of hashes are not."""

HEADERS: Final[Mapping[str, str]] = {
    # Scripts and styles load only from this node, data goes only to this node, and no
    # text becomes markup. So output of a task remains text in every view.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Origin, Accept-Encoding",
}
REVALIDATE: Final = "no-cache"
"""Browsers revalidate, so new versions are visible at once; ETags save transfers."""
IMMUTABLE: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """A file with its response headers."""

    body: bytes
    content_type: str
    etag: str
    cache_control: str  #: value of Cache-Control


@functools.cache
def assets() -> Mapping[str, Asset]:
    """Return all files by path below `/static`, with and without the version."""
    found = dict(_read(files("octaskly") / "static", PurePosixPath()))
    version = _hash(*(part for path in sorted(found) for part in (path, found[path])))
    index = _index(found.pop(INDEX), version, found)
    made = {INDEX: _asset(INDEX, index, REVALIDATE)}
    for path, body in found.items():
        made[path] = _asset(path, body, REVALIDATE)
        made[f"{version}/{path}"] = replace(made[path], cache_control=IMMUTABLE)
    return made


def _read(folder: Traversable, place: PurePosixPath) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        path = place / entry.name
        if entry.is_dir():
            yield from _read(entry, path)
        elif path.suffix in CONTENT_TYPES:
            yield str(path), entry.read_bytes()


def _index(body: bytes, version: str, paths: Iterable[str]) -> bytes:
    """Return the page with versioned paths and a preload link for each module.

    Without the links, a browser would find each module in the one that imports it, and
    request them one after another.
    """
    preloads = b"\n    ".join(
        b'<link rel="modulepreload" href="%s%s">' % (ROOT, path.encode())
        for path in sorted(paths)
        if path.endswith(".js")
    )
    return body.replace(PRELOADS, preloads).replace(
        ROOT, b"%s%s/" % (ROOT, version.encode())
    )


def _asset(path: str, body: bytes, cached: str) -> Asset:
    return Asset(body, CONTENT_TYPES[PurePosixPath(path).suffix], _hash(body), cached)


@functools.cache
def _gzipped(body: bytes) -> bytes:
    """Return a compressed file, made on first use, as many are never requested."""
    return gzip.compress(body, mtime=0)


def _hash(*parts: str | bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.encode() if isinstance(part, str) else part)
    return whole.hexdigest()[:16]


async def serve_asset(request: Request) -> web.StreamResponse:
    """Return a file of the dashboard."""
    asset = assets().get(request.path_params.get("file", INDEX))
    if asset is None:
        raise status_problem(HTTPStatus.NOT_FOUND, "the dashboard has no such file")
    headers = {
        **HEADERS,
        "ETag": f'"{asset.etag}"',
        "Cache-Control": asset.cache_control,
    }
    known = request.http_request.if_none_match or ()
    if any(one.value in (asset.etag, "*") for one in known):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    headers["Content-Type"] = asset.content_type
    if "gzip" not in request.http_request.headers.get("Accept-Encoding", ""):
        return web.Response(body=asset.body, headers=headers)
    headers["Content-Encoding"] = "gzip"
    return web.Response(body=_gzipped(asset.body), headers=headers)


ROUTES = tuple(
    Route(
        method="GET",
        path=path,
        handler=serve_asset,
        cost=route_cost.CHEAP,
        access=Access.PUBLIC,
        is_local=True,
        query=None,  # Bookmarks may contain any parameters.
        is_page=True,
        responses={200: None, 304: None},
        media_type="text/html",
    )
    for path in ("/", "/static/{file:.+}")
)
