"""The table of all routes."""

from __future__ import annotations

from octaskly.api import (
    admitting,
    arrays,
    attempts,
    audit,
    auditing,
    doctor,
    events,
    logs,
    nodes,
    openapi,
    outputs,
    page,
    pieces,
    results,
    rotation,
    sessions,
    standing,
    tasks,
    tokens,
    toll,
)

ROUTES = openapi.with_document(
    *page.ROUTES,
    *tasks.ROUTES,
    *arrays.ROUTES,
    *attempts.ROUTES,
    *logs.ROUTES,
    *outputs.ROUTES,
    *nodes.ROUTES,
    *tokens.ROUTES,
    *sessions.ROUTES,
    *doctor.ROUTES,
    *audit.ROUTES,
    *auditing.ROUTES,
    *admitting.ROUTES,
    *events.ROUTES,
    *results.ROUTES,
    *standing.ROUTES,
    *pieces.ROUTES,
    *toll.ROUTES,
    *rotation.ROUTES,
)
