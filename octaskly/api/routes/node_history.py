"""The route of how tasks stood in the last minutes."""

from __future__ import annotations

from typing import TypedDict

from aiohttp import web

from octaskly.api.http.request import Access, Request, Route, json_response
from octaskly.api.schemas import task_response
from octaskly.rest.tasks import At


class QueueHistoryPoint(TypedDict):
    """How many tasks waited and ran, and how fast they ended since the point before."""

    at: At
    queued: int
    running: int
    ended_per_second: float


class QueueHistory(TypedDict):
    """The points of this reign, at most of ten minutes, the oldest first."""

    points: list[QueueHistoryPoint]


async def show_queue_history(request: Request) -> web.StreamResponse:
    """Return how tasks stood in the last ten minutes, at even times."""
    points = [
        {
            "at": task_response.at(point.at_ms),
            "queued": point.queued,
            "running": point.running,
            "ended_per_second": round(point.ended_per_s, 2),
        }
        for point in request.gateway.queue_history()
    ]
    return json_response(task_response.encode({"points": points}))


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/stats/history",
        handler=show_queue_history,
        access=Access.READ,
        responses={200: QueueHistory},
    ),
)
