"""Rate limits of a client on one node and many: counts, headers and refusals."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from octaskly.api.http import sse
from octaskly.api.http.handler_types import HttpTimeouts
from octaskly.api.problems import Problem
from octaskly.api.routes.table import ROUTES
from octaskly.api.security import rate_limit
from octaskly.core.model.ids import Moment, NodeId
from octaskly.ports.store import TaskListPage, TaskQuery
from octaskly.ports.tokens import Principal
from tests.integration.api.test_streams import serve_stream
from tests.support.api_mesh import ApiMesh, Member, stranger_context
from tests.support.api_node import (
    ADMIN,
    CLIENT,
    VIEWER,
    Answer,
    ApiNode,
    api_node,
    ask,
    assert_problem,
)
from tests.support.fake_gateway import NOW_MS, FakeGateway

TASKS = "/api/v1/tasks"
LIST = f"{TASKS}?limit=10"  #: as many rows as one unit has
DOCUMENT = "/api/v1/openapi.json"  #: every node answers it by itself
RATES = {"client": 3, "viewer": 2, "stranger": 2}
OTHER = {"Authorization": "Bearer other-token"}


class Clock:
    """Clock port that a test moves."""

    def __init__(self) -> None:
        self.mono_s = 1000.5

    def now(self) -> Moment:
        return Moment(self.mono_s, NOW_MS)

    def draw(self) -> float:
        return 0.5


@dataclass
class Limited:
    """A node with limits, and its clock."""

    api: ApiNode
    clock: Clock

    async def ask(
        self, headers: Mapping[str, str] = CLIENT, path: str = LIST
    ) -> Answer:
        return await self.api.ask("GET", path, headers=headers)


@pytest.fixture
async def limited_node() -> AsyncIterator[Limited]:
    clock = Clock()
    async with api_node(limits_per_minute=RATES, clock=clock) as started:
        yield Limited(started, clock)


def limits_of(answer: Answer) -> tuple[str | None, ...]:
    """Return status, limit, remaining requests, and seconds until the next."""
    return (
        str(answer.status),
        *map(answer.headers.get, map(str.lower, rate_limit.RATE_LIMIT_HEADERS)),
    )


async def test_every_answer_has_the_remaining_requests(
    limited_node: Limited,
) -> None:
    """The oldest request of a minute frees a place."""
    answers = [await limited_node.ask() for _ in range(2)]
    limited_node.clock.mono_s += 10
    answers += [await limited_node.ask() for _ in range(2)]

    assert [limits_of(answer) for answer in answers] == [
        ("200", "3", "2", "61"),
        ("200", "3", "1", "61"),
        ("200", "3", "0", "51"),
        ("429", "3", "0", "51"),
    ]
    assert_problem(answers[-1], 429, "Too many requests")
    assert answers[-1].headers["retry-after"] == "51"
    assert "3 requests per minute" in answers[-1].json["hint"]


async def test_a_client_that_waits_as_requested_is_accepted(
    limited_node: Limited,
) -> None:
    """Refused requests do not count."""
    answers = [await limited_node.ask() for _ in range(5)]
    limited_node.clock.mono_s += int(answers[-1].headers["retry-after"])

    assert limits_of(await limited_node.ask()) == ("200", "3", "2", "61")


async def test_a_list_counts_by_its_rows() -> None:
    """Of those that it might have had, and has not, nothing is counted in the end.

    One that may have more than is left is refused, and waits until as much is free.
    """
    clock = Clock()
    async with api_node(limits_per_minute={"client": 3}, clock=clock) as api:
        await api.ask(
            "POST", TASKS, headers=ADMIN, body=[{"command": "true"} for _ in range(25)]
        )

        async def listed(limit: int) -> tuple[str | None, ...]:
            path = f"{TASKS}?limit={limit}"
            return limits_of(await api.ask("GET", path, headers=CLIENT))

        answers = [await listed(20), await listed(25)]
        clock.mono_s += 10
        answers += [await listed(10), await listed(10)]
        clock.mono_s += 51
        answers += [await listed(1000), await listed(20)]
        clock.mono_s += 10
        answers += [await listed(1000)]
        clock.mono_s += 61
        answers += [await listed(1000), await listed(10)]

    assert answers == [
        ("200", "3", "1", "61"),
        ("429", "3", "1", "61"),
        ("200", "3", "0", "51"),
        ("429", "3", "0", "51"),
        ("429", "3", "2", "10"),  # It may have all three, and has one at that time.
        ("200", "3", "0", "10"),
        ("429", "3", "1", "51"),
        ("200", "3", "1", "61"),  # It counts as 25 rows.
        ("200", "3", "0", "61"),
    ]


LISTS = [
    route.path
    for route in ROUTES
    if route.cost.rows_parameter == "limit" and not route.cost.reads_all
]


@pytest.mark.parametrize("path", LISTS)
async def test_a_short_list_counts_once_whatever_its_limit(path: str) -> None:
    """Each route of a list says how many rows it has in the end."""
    async with api_node(limits_per_minute={"admin": 500}, clock=Clock()) as api:
        body = {"command": "true {}", "array": {"range": "1-3"}}
        array = await api.ask("POST", TASKS, headers=ADMIN, body=body)
        path = path.format(id=array.json["id"])
        answer = await api.ask("GET", f"{path}?limit=1000", headers=ADMIN)

    assert limits_of(answer)[:3] == ("200", "500", "498")


class SlowGateway(FakeGateway):
    """An agent whose lists never end."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = asyncio.Event()

    async def list_tasks(self, query: TaskQuery) -> TaskListPage:
        self.is_asked.set()
        await asyncio.Event().wait()
        return await super().list_tasks(query)


async def test_a_list_that_nobody_reads_counts_as_the_longest() -> None:
    """A client that leaves before the answer has had it read all the same."""
    gateway = SlowGateway()
    limits = {"client": 200}
    async with api_node(gateway, limits_per_minute=limits, clock=Clock()) as api:
        path = f"{TASKS}?limit=1000"
        leaving = asyncio.create_task(api.ask("GET", path, headers=CLIENT))
        await gateway.is_asked.wait()
        leaving.cancel()
        answer = await api.ask("GET", "/api/v1/stats", headers=CLIENT)

    assert limits_of(answer)[2] == "99"


async def test_a_long_answer_counts_by_its_size() -> None:
    """A whole task may be as long as a list; who has read it waits for it."""
    clock = Clock()
    async with api_node(limits_per_minute={"client": 20}, clock=clock) as api:
        env = {f"V{n}": "x" * 100_000 for n in range(4)}
        body = {"command": "true", "env": env}
        task = await api.ask("POST", TASKS, headers=ADMIN, body=body)
        path = f"{TASKS}/{task.json['id']}"
        answers = [await api.ask("GET", path, headers=CLIENT) for _ in range(3)]
        clock.mono_s += 61
        answers += [await api.ask("GET", path, headers=CLIENT)]

    assert [limits_of(answer) for answer in answers] == [
        ("200", "20", "1", "61"),
        ("200", "20", "0", "61"),
        ("429", "20", "0", "61"),
        ("200", "20", "1", "61"),
    ]


@pytest.mark.parametrize("query", ["text=a", "name=a", "label=a"])
async def test_a_search_counts_as_much_as_300_rows(query: str) -> None:
    """It takes as long, whatever it finds."""
    async with api_node(limits_per_minute={"client": 40}, clock=Clock()) as api:
        path = f"{TASKS}?limit=1&{query}"
        answers = [await api.ask("GET", path, headers=CLIENT) for _ in range(2)]

    assert [limits_of(answer)[:3] for answer in answers] == [
        ("200", "40", "10"),
        ("429", "40", "10"),
    ]


async def test_a_refusal_takes_its_time() -> None:
    """A client that repeats at once, against the advice, keeps no node busy.

    Others are served meanwhile.
    """
    for_ever = HttpTimeouts(shutdown_s=0.1, refusal_delay_s=3600)
    async with api_node(
        limits_per_minute={"viewer": 1}, clock=Clock(), timeouts=for_ever
    ) as api:
        await api.ask("GET", LIST, headers=VIEWER)
        refused = asyncio.create_task(api.ask("GET", LIST, headers=VIEWER))
        while not api.server.rate_limiter.refused_count:
            await api.ask("GET", LIST, headers=CLIENT)

        assert (await api.ask("GET", LIST, headers=CLIENT)).status == 200
        assert not refused.done()
        refused.cancel()


async def test_each_client_has_its_own_account_by_its_role(
    limited_node: Limited,
) -> None:
    """A wild client takes nothing from others; admins have no limit here."""
    for _ in range(4):
        await limited_node.ask(CLIENT)

    assert limits_of(await limited_node.ask(CLIENT))[0] == "429"
    assert limits_of(await limited_node.ask(OTHER))[:2] == ("200", "3")
    assert limits_of(await limited_node.ask(VIEWER))[:2] == ("200", "2")
    assert limits_of(await limited_node.ask(ADMIN)) == ("200", None, None, None)


async def test_other_refusals_count_too(
    limited_node: Limited,
) -> None:
    """Guessing ids is not free; a refusal for the role alone is."""
    viewer = [
        await limited_node.ask(VIEWER, f"{TASKS}/task-999"),
        await limited_node.api.ask(
            "POST", TASKS, headers=VIEWER, body={"command": "true"}
        ),
        await limited_node.ask(VIEWER, f"{TASKS}?limit=0"),
        await limited_node.ask(VIEWER),
    ]

    assert [limits_of(answer)[::2] for answer in viewer] == [
        ("404", "1"),
        ("403", None),
        ("400", "0"),
        ("429", "0"),
    ]


async def test_the_body_of_a_refused_request_is_not_read(
    limited_node: Limited,
) -> None:
    """It may be a mebibyte; the answer precedes it."""
    for _ in range(3):
        await limited_node.ask()
    head = {**CLIENT, "Content-Length": "1000000", "Content-Type": "application/json"}

    answer = await limited_node.api.ask("POST", TASKS, headers=head, body=b"[")

    assert_problem(answer, 429)
    assert limited_node.api.gateway.records == {}


async def test_a_stream_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its start, however long it lasts."""

    async def many(stream: sse.EventStream) -> None:
        for number in range(50):
            await stream.send({"n": number})

    serve_stream(monkeypatch, many)
    async with api_node(limits_per_minute=RATES, clock=Clock()) as api:
        answers = [
            await api.ask("GET", "/api/v1/test-stream", headers=VIEWER)
            for _ in range(3)
        ]

    assert [limits_of(answer)[::2] for answer in answers] == [
        ("200", "1"),
        ("200", "0"),
        ("429", "0"),
    ]


def test_each_token_has_its_own_account() -> None:
    """Even if two have the same subject."""
    meter = rate_limit.RateLimiter({"client": 1}, Clock())

    left = [
        meter.charge(Principal(subject="ci", role="client", token=token))
        for token in ("first", "second")
    ]

    assert [headers["RateLimit-Remaining"] for headers in left] == ["0", "0"]


async def test_of_too_many_clients_the_longest_idle_start_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory is bounded, and no client is refused because of others."""
    monkeypatch.setattr(rate_limit, "CLIENTS_MAX", 1)
    meter = rate_limit.RateLimiter({"client": 1}, Clock())
    ana, bo = (Principal(subject=name, role="client") for name in ("ana", "bo"))

    left = [meter.charge(who)["RateLimit-Remaining"] for who in (ana, bo, ana)]

    assert left == ["0", "0", "0"]


@pytest.fixture
async def members(api_mesh: ApiMesh) -> list[Member]:
    """Three nodes of one mesh; the first is dispatcher."""
    members = [
        await api_mesh.member(name, limits_per_minute=RATES, clock=Clock())
        for name in ("a", "b", "c")
    ]
    for member in members[1:]:
        member.follow(members[0])
    return members


@pytest.mark.parametrize("path", [LIST, DOCUMENT], ids=["forwarded", "local"])
async def test_a_client_of_all_nodes_has_one_account(
    members: list[Member], path: str
) -> None:
    """Decision and headers are the same at every node."""
    answers = [
        await members[number % 3].api.ask("GET", path, headers=CLIENT)
        for number in range(1, 7)
    ]

    assert [limits_of(answer) for answer in answers] == [
        ("200", "3", "2", "61"),
        ("200", "3", "1", "61"),
        ("200", "3", "0", "61"),
        *[("429", "3", "0", "61")] * 3,
    ]
    assert {answer.headers["retry-after"] for answer in answers[3:]} == {"61"}
    for answer in answers[3:]:
        assert_problem(answer, 429, "Too many requests")


async def test_a_costly_request_that_a_node_answers_counts_in_full(
    members: list[Member],
) -> None:
    """The dispatcher counts its units, as it does for what it answers itself."""
    front = members[1]
    path = "/api/v1/nodes/b/storage"

    answer = await front.api.ask("GET", path, headers=CLIENT)

    assert limits_of(answer)[2] == "0"  # Of three, and it costs 30.


async def test_the_dispatcher_refuses_at_once_what_a_node_asks_for_a_client(
    api_mesh: ApiMesh,
) -> None:
    """The node delays its own answer; if it had none in time, it would count alone."""
    for_ever = HttpTimeouts(shutdown_s=0.1, refusal_delay_s=3600)
    limits: dict[str, Any] = {"limits_per_minute": RATES, "clock": Clock()}
    back = await api_mesh.member("back", for_ever, **limits)
    front = await api_mesh.member("front", **limits)
    front.follow(back)

    answers = [await front.api.ask("GET", DOCUMENT, headers=CLIENT) for _ in range(4)]

    assert [answer.status for answer in answers] == [200, 200, 200, 429]


@pytest.mark.parametrize("is_known", [False, True], ids=["none known", "it is gone"])
async def test_without_a_dispatcher_each_node_counts_alone(
    members: list[Member], *, is_known: bool
) -> None:
    """Then a client has one account for each node, and no more."""
    front = members[1]
    if is_known:
        await members[0].api.server.close()
    else:
        front.gateway.elect(None)

    answers = [await front.api.ask("GET", DOCUMENT, headers=CLIENT) for _ in range(4)]

    assert [limits_of(answer)[::2] for answer in answers] == [
        ("200", "2"),
        ("200", "1"),
        ("200", "0"),
        ("429", "0"),
    ]


async def test_a_new_dispatcher_gives_a_client_at_most_one_more_account(
    members: list[Member],
) -> None:
    """It does not know the counts of the previous one."""
    front = members[1]
    before = [await front.api.ask("GET", LIST, headers=CLIENT) for _ in range(4)]
    members[2].become_dispatcher(term=2)
    front.follow(members[2], term=2)
    after = [await front.api.ask("GET", LIST, headers=CLIENT) for _ in range(4)]

    assert [answer.status for answer in before] == [200, 200, 200, 429]
    assert [answer.status for answer in after] == [200, 200, 200, 429]


async def from_lan(
    member: Member, path: str = "/health", *, tls: ssl.SSLContext | None = None
) -> Answer:
    """Send a request on the LAN's port, without a token."""
    return await ask(
        member.lan_port, "GET", path, headers={"Host": "127.0.0.1"}, tls=tls
    )


async def test_an_address_of_the_lan_is_limited_without_a_token(
    members: list[Member],
) -> None:
    """Token holders at that address are served, and so are other nodes."""
    [member, *_] = members
    stranger = stranger_context()

    answers = [
        await from_lan(member, path, tls=stranger)
        for path in ("/health", TASKS, "/nowhere", "/health")
    ]
    known = await ask(
        member.lan_port,
        "GET",
        LIST,
        headers={"Host": "127.0.0.1", **CLIENT},
        tls=stranger,
    )
    node = await from_lan(member, tls=members[1].trust.lan_client_context())
    here = await member.api.ask("GET", "/health")

    assert [answer.status for answer in answers] == [200, 401, 429, 429]
    assert_problem(answers[2], 429, "Too many requests")
    assert limits_of(known)[::2] == ("200", "2")
    assert [limits_of(answer)[:2] for answer in (node, here)] == [("200", None)] * 2


def test_visitors_have_a_rate_of_their_own() -> None:
    """One that floods is refused, others and strangers are not."""
    meter = rate_limit.RateLimiter({rate_limit.ANONYMOUS: 1}, Clock())
    flooding = NodeId("visitor-flooding")
    for _ in range(rate_limit.VISITOR_PER_MINUTE):
        meter.charge_visitor(flooding)

    with pytest.raises(Problem) as refused:
        meter.charge_visitor(flooding)

    assert refused.value.status == 429
    meter.charge_visitor(NodeId("visitor-other"))
    meter.charge_anonymous("address 10.0.0.9")
