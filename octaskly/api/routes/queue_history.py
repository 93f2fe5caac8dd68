"""Routes of the queue: its history, and what of it visitors could run."""

from __future__ import annotations

from aiohttp import web

from octaskly.api.http.handler_types import Access, Request, Route, json_response
from octaskly.api.problems import timestamp
from octaskly.api.schemas import task_response
from octaskly.api.security import route_cost
from octaskly.rest.mesh import History, HistoryPoint, VisitorDemand


async def show_queue_history(request: Request) -> web.StreamResponse:
    """Return task counts of the last ten minutes, at regular intervals."""
    points = [
        HistoryPoint(
            at=timestamp(point.at_ms),
            queued=point.queued,
            running=point.running,
            ended_per_second=round(point.ended_per_s, 2),
        )
        for point in request.gateway.queue_history()
    ]
    return json_response(task_response.encode(History(points=points)))


async def show_visitor_demand(request: Request) -> web.StreamResponse:
    """Return how many queued tasks a visitor could run that is not there yet."""
    demand = await request.gateway.visitor_demand(request.query.required_label())
    shown = VisitorDemand(waiting=demand.waiting, is_exact=demand.is_exact)
    return json_response(task_response.encode(shown))


ROUTES = (
    Route(
        method="GET",
        path="/api/v1/stats/history",
        handler=show_queue_history,
        cost=route_cost.CHEAP,
        access=Access.READ,
        responses={200: History},
    ),
    Route(
        method="GET",
        path="/api/v1/stats/visitors",
        handler=show_visitor_demand,
        cost=route_cost.EXPENSIVE,
        access=Access.READ,
        query=("required_label",),
        responses={200: VisitorDemand},
    ),
)
