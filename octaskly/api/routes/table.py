"""Table of all routes.

Each route states its permission (`Route.access`), its limits and its handler in the
`ROUTES` of its own module; `api.http.handler_types` defines these types. To add a
module of routes, list it here.
"""

from __future__ import annotations

from octaskly.api.http import audit_trail, mesh_rate_limit
from octaskly.api.output import (
    downloads,
    forgotten_outputs,
    logs,
    output_transfer,
    output_trees,
    task_status_query,
)
from octaskly.api.routes import (
    array_results,
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
    nodes,
    openapi,
    sessions,
    task_trees,
    tasks,
    tokens,
    visits,
)

ROUTES = openapi.with_openapi_route(
    *dashboard.ROUTES,
    *tasks.ROUTES,
    *arrays.ROUTES,
    *attempts.ROUTES,
    *logs.ROUTES,
    *downloads.ROUTES,
    *task_trees.ROUTES,
    *files.ROUTES,
    *nodes.ROUTES,
    *tokens.ROUTES,
    *sessions.ROUTES,
    *doctor.ROUTES,
    *audit.ROUTES,
    *audit_trail.ROUTES,
    *joining.ROUTES,
    *events.ROUTES,
    *array_results.ROUTES,
    *task_status_query.ROUTES,
    *output_transfer.ROUTES,
    *forgotten_outputs.ROUTES,
    *output_trees.ROUTES,
    *mesh_rate_limit.ROUTES,
    *key_rotation.ROUTES,
    *metrics.ROUTES,
    *visits.ROUTES,
)
