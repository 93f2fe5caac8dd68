"""Routes of the files that were sent along with a task.

Viewers may see their names and sizes. Their contents are, like stdin, for those who may
submit tasks, which can read them anyway.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from aiohttp import web
from msgspec.structs import replace

from octaskly.api.http.handler_types import BYTES, TAR, Access, Request, Route
from octaskly.api.output.downloads import list_manifest, send_file, send_tar
from octaskly.api.problems import Problem
from octaskly.api.schemas import query, request_bodies
from octaskly.api.security import route_cost
from octaskly.core.model.task_options import InputTree
from octaskly.errors import OutputNotFound
from octaskly.files.manifest import ManifestError
from octaskly.ports.store import TaskParts
from octaskly.rest.tasks import TreePage

_PATH = "/api/v1/tasks/{id}/tree"


async def list_tree(request: Request) -> web.StreamResponse:
    """Return a part of the files that were sent along with a task, with their sizes."""
    tree, trees = await _sent_tree(request), request.files.trees
    with _tree_errors():
        manifest = await trees.read_manifest(tree)
    return await list_manifest(request, manifest)


async def download_tree_file(request: Request) -> web.StreamResponse:
    """Send a file that was sent along with a task."""
    path = query.output_path(request_bodies.clean_path, request.path_params["path"])
    tree, trees = await _sent_tree(request), request.files.trees
    with request.services.streams.count_stream(request.principal), _tree_errors():
        stored = await trees.fetch_tree(tree, path)
    file = stored.file_path(path)
    if file is None:
        is_known = stored.has_path(path)
        raise _not_found(
            f"{path!r} is a folder or a link; `tree.tar` has all files"
            if is_known
            else "no file with this path was sent along with the task",
            field="path",
        )
    return await send_file(
        request, file, path.rpartition("/")[2], etag=stored.file_etag(path)
    )


async def download_tree(request: Request) -> web.StreamResponse:
    """Send all files that were sent along with a task as one tar."""
    tree, trees = await _sent_tree(request), request.files.trees
    # A manifest of many files is in memory until its archive has been sent.
    with request.services.streams.count_stream(request.principal):
        with _tree_errors():
            stored = await trees.fetch_tree(tree)
        name = f"{query.task_ref(request.path_params['id'])}-files.tar"
        return await send_tar(request, stored, name)


async def _sent_tree(request: Request) -> InputTree:
    """Return the tree of a task; of an array, with the files of all members.

    Raises:
        Problem: 404, no files were sent along with it.
    """
    ref = query.task_ref(request.path_params["id"])
    record = await request.gateway.find_task(ref, TaskParts.BRIEF)
    options = record.spec.options if record.spec else None
    if options is None or options.tree is None:
        raise _not_found("no files were sent along with the task")
    return options.tree if options.array is None else replace(options.tree, folders=())


@contextlib.contextmanager
def _tree_errors() -> Iterator[None]:
    """Say what a client can do if files are not stored any more."""
    try:
        yield
    except (OutputNotFound, ManifestError) as error:
        raise _not_found(
            "files are kept for about an hour after the end of their task, and "
            f"files that a client lends only while that client runs: {error}"
        ) from None


def _not_found(hint: str, *, field: str | None = None) -> Problem:
    return Problem(404, "File not found", hint=hint, field=field)


ROUTES = (
    Route(
        method="GET",
        path=_PATH,
        handler=list_tree,
        cost=route_cost.TREE,
        access=Access.READ,
        query=("limit", "offset"),
        responses={200: TreePage},
        error_statuses=(409,),
    ),
    Route(
        method="GET",
        path=_PATH + ".tar",
        handler=download_tree,
        cost=route_cost.STREAM,
        access=Access.SUBMIT,
        responses={200: None, 206: None},
        media_type=TAR,
        request_headers=("Range", "If-Range"),
        error_statuses=(409, 416),
    ),
    Route(
        method="GET",
        path=_PATH + "/{path:(?s:.+)}",
        handler=download_tree_file,
        cost=route_cost.STREAM,
        access=Access.SUBMIT,
        responses={200: None, 206: None},
        media_type=BYTES,
        request_headers=("Range", "If-Range"),
        error_statuses=(409, 416),
    ),
)
