"""The table of all routes."""

from __future__ import annotations

from octaskly.api import (
    admitting,
    arrays,
    audit,
    auditing,
    doctor,
    events,
    files,
    logs,
    nodes,
    openapi,
    outputs,
    page,
    pieces,
    results,
    rotation,
    standing,
    tasks,
    tokens,
    toll,
)

ROUTES = openapi.with_document(
    *page.ROUTES,
    *tasks.ROUTES,
    *arrays.ROUTES,
    *logs.ROUTES,
    *outputs.ROUTES,
    *files.ROUTES,
    *nodes.ROUTES,
    *tokens.ROUTES,
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
