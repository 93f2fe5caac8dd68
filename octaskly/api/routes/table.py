"""Table of all routes."""

from __future__ import annotations

from octaskly.api.http import audit_trail, shared_rate_limit
from octaskly.api.output import downloads, logs, task_status, transcripts
from octaskly.api.routes import (
    arrays,
    attempts,
    audit,
    dashboard,
    doctor,
    events,
    files,
    joining,
    key_rotation,
    metrics,
    node_history,
    nodes,
    openapi,
    results,
    sessions,
    task_ids,
    tasks,
    tokens,
)

ROUTES = openapi.with_openapi_route(
    *dashboard.ROUTES,
    *tasks.ROUTES,
    *task_ids.ROUTES,
    *arrays.ROUTES,
    *attempts.ROUTES,
    *logs.ROUTES,
    *downloads.ROUTES,
    *files.ROUTES,
    *nodes.ROUTES,
    *node_history.ROUTES,
    *tokens.ROUTES,
    *sessions.ROUTES,
    *doctor.ROUTES,
    *audit.ROUTES,
    *audit_trail.ROUTES,
    *joining.ROUTES,
    *events.ROUTES,
    *results.ROUTES,
    *task_status.ROUTES,
    *transcripts.ROUTES,
    *shared_rate_limit.ROUTES,
    *key_rotation.ROUTES,
    *metrics.ROUTES,
)
