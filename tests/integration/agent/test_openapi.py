"""Requests generated from the OpenAPI document, sent to a live mesh of three nodes.

All nodes are drained first: commands are random text here, and none of it may run.
Half of the requests go to the dispatcher, half to a node that forwards them. Excluded
are waits for unfinished tasks and for absent nodes, and routes between nodes.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.agents import Agent, meshed, until
from tests.support.conformance import DOCUMENT, path_of

NAMES = ("ash", "birch", "cedar")
TASKS = "/api/v1/tasks"
#: Tasks that exist at the start.
ENDED = ("good", "bad", "many", "many.2", "cancelled")
#: Excluded: one ran commands again, or removed the node from the mesh.
SPARED = ("/resume", "/unpause", "/revoke")
KNOWN = {"id": ENDED, "task": ENDED, "array": ENDED, "path": ("out.txt",)}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
#: Of each route, beyond the few dozens that cover the bounds of its parameters.
IS_LONG = settings.get_current_profile_name() == "soak"
EXAMPLES = 300 if IS_LONG else 10
#: Of each route without a token, where what follows the headers makes no difference.
REFUSED = 300 if IS_LONG else 3
#: Without a token: refused as an invalid request, or never sent.
STRANGERS = {400, 401, 403, 404, 405, 413, 415}
#: Routes without a token: with a code instead, or for the certificate of a node.
TOKENLESS = ("/api/v1/sessions", "/internal/")
OPEN = ("/health", "/metrics")  #: the latter on loopback


def _narrowed() -> dict[str, Any]:
    """Return the document narrowed to meaningful requests without long waits."""
    narrowed = copy.deepcopy(DOCUMENT)
    for path, operations in narrowed["paths"].items():
        for operation in operations.values():
            for parameter in operation["parameters"]:
                _narrow(path, parameter)
    # All bounds of a task are tried with one alone, not again within an array.
    body = narrowed["paths"][TASKS]["post"]["requestBody"]["content"]
    (many,) = (k for k in body["application/json"]["schema"]["anyOf"] if "items" in k)
    many["items"] = {
        "type": "object",
        "properties": {"command": {"type": "string"}},
        "required": ["command"],
        "additionalProperties": False,
    }
    # With a key all bodies but the first were refused.
    parameters = narrowed["paths"][TASKS]["post"]["parameters"]
    parameters[:] = [p for p in parameters if p["name"] != "Idempotency-Key"]
    fields = narrowed["components"]["schemas"]["TaskIn"]["properties"]
    # Queued tasks stay queued here: no request may guess a name and wait for it.
    del fields["id"]
    fields["after"]["items"] = {"enum": ["good", "bad", "many", "cancelled"]}
    # Seconds are granted to a node that is not in the mesh now, as it may restart.
    narrowed["components"]["schemas"]["InputIn"]["properties"]["node"] = {
        "enum": list(NAMES)
    }
    fields["notify_url"] = {"enum": [None, "http://127.0.0.1:9/"]}
    return narrowed


def _narrow(path: str, parameter: dict[str, Any]) -> None:
    name, known = parameter["name"], KNOWN.get(parameter["name"], ())
    if name == "name" and not path.endswith(SPARED):
        known = NAMES
    if known:
        parameter["schema"] = {"anyOf": [{"enum": list(known)}, parameter["schema"]]}


# From fixtures, because it takes seconds to make the requests. Otherwise each process
# of a run of several would make them as it collects, and only one sends them.
for_members = schemathesis.pytest.from_fixture("schema_for_members")
for_strangers = schemathesis.pytest.from_fixture("schema_for_strangers")


@pytest.fixture(scope="module")
def schema_for_members() -> BaseSchema:
    return schemathesis.openapi.from_dict(_narrowed())


@pytest.fixture(scope="module")
def schema_for_strangers() -> BaseSchema:
    schema = schemathesis.openapi.from_dict(_narrowed())
    schema.config.phases.coverage.enabled = IS_LONG  # Each bound of each parameter.
    return schema


@pytest.fixture(autouse=True)
def _is_named(request: pytest.FixtureRequest) -> None:
    """Set what schemathesis 4.32 reads to name its parts, and pytest 9.2 has not."""
    request.node._nodeid = request.node.nodeid


@dataclass
class Front:
    """A node as a client over HTTP sees it."""

    agent: Agent
    url: str
    token: str = ""

    def renew(self) -> None:
        """Get a new token: an urgent rotation has ended all of them."""
        status, minted = self.agent.call("POST", "/api/v1/tokens", {"role": "admin"})
        if status == 201:
            self.token = minted["token"]

    def ask(self, case: Case[Any]) -> requests.Response:
        """Send a request; the body of an endless event stream is not read."""
        headers = {"Authorization": f"Bearer {self.token}"}
        given = case.as_transport_kwargs(base_url=self.url, headers=headers)
        with requests.request(**given, stream=True, timeout=60) as response:
            if response.headers.get("Content-Type") == "text/event-stream":
                response._content = b""
            assert response.content is not None  # It is read while it is open.
            return response

    def is_over(self, response: requests.Response) -> bool:
        """Return True if the token itself was refused, not the request."""
        used = response.request.headers.get("Authorization") == f"Bearer {self.token}"
        path = path_of(str(response.request.url))
        return used and response.status_code == 401 and not path.startswith(TOKENLESS)


@pytest.fixture(scope="module")
def fronts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Front]]:
    """The dispatcher and another node of a mesh that runs no tasks any more."""
    with meshed(tmp_path_factory.mktemp("mesh"), *NAMES) as agents:
        _fill(agents[0])
        for name in NAMES:
            status, _ = agents[0].call("POST", f"/api/v1/nodes/{name}/drain")
            assert status == 200
        yield [_front_of(agent) for agent in agents[:2]]
        status, stats = agents[0].call("GET", "/api/v1/stats")
        assert status == 200, stats
        assert stats["tasks"]["running"] == 0


def _one_of(fronts: list[Front], case: Case[Any]) -> Front:
    asked = repr((case.path_parameters, case.query, case.body))
    return fronts[zlib.crc32(asked.encode("utf-8", "replace")) % len(fronts)]


def _fill(agent: Agent) -> None:
    """Create an ended task of each kind."""
    tasks: list[dict[str, Any]] = [
        {"id": "good", "command": "echo out | tee out.txt", "outputs": ["out.txt"]},
        {"id": "bad", "command": r"printf '\377' >&2; kill -9 $$"},
        {"id": "many", "command": "exit $(({} - 1))", "array": {"range": "1-3"}},
        {"id": "cancelled", "command": "true", "requires": {"gpus": 1000}},
    ]
    status, body = agent.call("POST", TASKS, tasks)
    assert status == 201, body
    status, body = agent.call("DELETE", f"{TASKS}/cancelled")
    assert status == 200, body
    for task in ENDED:
        status, body = agent.call("GET", f"{TASKS}/{task}?wait=30")
        assert body["status"] not in ("queued", "running"), body


def _front_of(agent: Agent) -> Front:
    front = Front(agent, agent.ready()["api_url"])
    front.renew()
    assert front.token
    return front


@pytest.mark.timeout(900)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@for_members.parametrize()
def test_every_answer_matches_the_document(
    case: Case[Any], fronts: list[Front]
) -> None:
    """No request causes 500, or a status, header or body outside the document.

    Nor is a request accepted that it does not allow.
    """
    front = _one_of(fronts, case)
    answers = [front.ask(case)]

    def is_accepted() -> bool:
        if front.is_over(
            answers[-1]
        ):  # Otherwise all later requests would be refused unread.
            front.renew()
            answers.append(front.ask(case))
        return not front.is_over(answers[-1])

    until(is_accepted, "a new token is good")
    case.validate_response(answers[-1], checks=CHECKS)


@pytest.mark.timeout(900)
@settings(max_examples=REFUSED, deadline=None, suppress_health_check=list(HealthCheck))
@for_strangers.parametrize()
def test_every_request_without_a_token_is_refused(
    case: Case[Any], fronts: list[Front]
) -> None:
    """Also with a made-up token: 401, or it is an invalid request."""
    given = case.as_transport_kwargs(base_url=_one_of(fronts, case).url)
    with requests.request(**given, timeout=60) as response:
        if case.method == "OPTIONS":  # The preflight of browsers, which has no token.
            assert (response.status_code, response.content) == (204, b"")
        elif response.status_code != 200 or case.path not in OPEN:
            assert response.status_code in STRANGERS
