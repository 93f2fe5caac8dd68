"""Each route declares its cost, and declares it as its other fields say."""

from __future__ import annotations

import dataclasses

import pytest

from octaskly.api.http import sse
from octaskly.api.http.handler_types import (
    BODY_BYTES_MAX,
    BYTES,
    TAR,
    Access,
    Route,
)
from octaskly.api.routes.table import ROUTES
from octaskly.api.security.quotas import CLIENT_SHARE
from octaskly.api.security.route_cost import LIST, TREE, CostKind
from octaskly.config.settings import LimitOptions

UNMETERED = (Access.PUBLIC, Access.NODE)
names = [f"{route.method} {route.path}" for route in ROUTES]
each_route = pytest.mark.parametrize("route", ROUTES, ids=names)


def test_a_route_without_a_cost_cannot_be_made() -> None:
    """So it cannot be forgotten."""
    field = {each.name: each for each in dataclasses.fields(Route)}["cost"]

    assert field.default is dataclasses.MISSING
    assert field.default_factory is dataclasses.MISSING


@each_route
def test_a_response_in_parts_is_a_stream(route: Route) -> None:
    """Its handler bounds it, as it never is in memory as a whole."""
    is_stream = route.media_type in (sse.CONTENT_TYPE, BYTES, TAR)

    assert is_stream == (route.cost.kind is CostKind.STREAM)


@each_route
def test_a_large_body_is_an_upload(route: Route) -> None:
    """Other bodies are small."""
    is_large = route.is_body_streamed or route.body_bytes_max > BODY_BYTES_MAX

    assert not is_large or route.cost.kind is CostKind.UPLOAD


@each_route
def test_a_number_of_rows_counts(route: Route) -> None:
    """Whatever its parameter is called."""
    known = set(route.query or ())
    counted = {"limit", "count"} & known

    assert counted == {route.cost.rows_parameter} - {""}
    if {"limit", "text"} <= known:
        assert set(route.cost.search_parameters) < known


@each_route
def test_an_expensive_route_has_a_client(route: Route) -> None:
    """Whose quota it uses up."""
    is_expensive = route.cost.kind is CostKind.EXPENSIVE

    assert not (is_expensive and route.access in UNMETERED)


def test_a_page_of_what_is_read_as_a_whole_is_expensive_however_short() -> None:
    """The manifest of a tree is read for one row, too."""
    assert TREE.is_expensive({"limit": "1"})
    assert TREE.rate_units({"limit": "1"}) == 10


def test_the_quotas_of_one_client_agree_by_default() -> None:
    """As many of the longest lists are in memory as may be in progress."""
    limits = LimitOptions()
    longest = LIST.response_bytes({"limit": "1000"})

    share = limits.responses_bytes * CLIENT_SHARE
    assert limits.expensive_per_client * longest <= share


@pytest.mark.parametrize(
    ("query", "rows", "units", "is_expensive"),
    [
        ({}, 100, 10, False),
        ({"limit": "1"}, 1, 1, False),
        ({"limit": "100"}, 100, 10, False),
        ({"limit": "101"}, 101, 10, True),
        ({"limit": "1000"}, 1000, 100, True),
        ({"limit": "1001"}, 100, 10, False),  # Will be refused.
        ({"limit": "-1"}, 100, 10, False),
        ({"limit": "9" * 5000}, 100, 10, False),
        ({"limit": "1", "text": "a"}, 1, 30, True),
        ({"limit": "1000", "label": "a"}, 1000, 100, True),
    ],
)
def test_a_list_costs_what_its_rows_cost(
    query: dict[str, str], rows: int, units: int, is_expensive: bool
) -> None:
    """A search costs as much as it may take."""
    assert LIST.rows(query) == rows
    assert LIST.rate_units(query) == units
    assert LIST.is_expensive(query) == is_expensive
