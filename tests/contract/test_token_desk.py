"""The contract of every token desk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from octaskly.agent.gateway.mesh_records import Records
from octaskly.agent.gateway.tokens import SESSION_S, SESSION_S_MAX, TokenService
from octaskly.core.log.facts import Recorded
from octaskly.core.log.mesh_records import TOKEN, TOKEN_REVOKED, RecordDraft
from octaskly.core.model.ids import NodeId
from octaskly.core.replies import RecordsKept
from octaskly.errors import (
    NotDispatcher,
    PermissionDenied,
    TokenExists,
    TokenNotFound,
    TrustError,
)
from octaskly.ports.store import RecordQuery
from octaskly.ports.tokens import Principal, TokenRegistry
from octaskly.system.clock import SystemClock
from octaskly.trust import MeshSecret, TokenSigner, generate_secret
from tests.support.dispatcher_role import DispatcherRole
from tests.support.fake_tokens import FakeTokens

DAY_S = 86_400


class MemoryRecords(Records):
    """Records of a mesh of one node, without a disk."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], Recorded] = {}
        self._listeners = {}

    async def write_records(self, *drafts: RecordDraft) -> RecordsKept:
        fresh = [Recorded(*draft, hlc=len(self.kept)) for draft in drafts]
        for record in fresh:
            self.kept.setdefault((record.kind, record.key), record)
        self.on_records(fresh)
        return RecordsKept(
            tuple(self.kept[record.kind, record.key] for record in fresh)
        )

    async def read_page(self, query: RecordQuery) -> tuple[Recorded, ...]:
        return tuple(r for r in self.kept.values() if r.kind in query.kinds)


def office(role: DispatcherRole) -> TokenService:
    return TokenService(
        TokenSigner(generate_secret()), MemoryRecords(), SystemClock(), role.require
    )


def fake(role: DispatcherRole) -> FakeTokens:
    return FakeTokens(1_800_000_000_000, role.require)


DESKS: tuple[Callable[[DispatcherRole], TokenRegistry], ...] = (office, fake)


@pytest.fixture(params=DESKS, ids=["real", "fake"])
def desk(
    request: pytest.FixtureRequest, dispatcher_role: DispatcherRole
) -> TokenRegistry:
    made: TokenRegistry = request.param(dispatcher_role)
    return made


class Signed(NamedTuple):
    """A desk, its signer, and the signer's secret."""

    secret: MeshSecret
    signer: TokenSigner
    desk: TokenService


@pytest.fixture
def signed() -> Signed:
    secret = generate_secret()
    signer = TokenSigner(secret)
    desk = TokenService(
        signer, MemoryRecords(), SystemClock(), DispatcherRole().require
    )
    return Signed(secret, signer, desk)


def local(subject: str) -> Principal:
    """Return a caller without a token."""
    return Principal(subject=subject, role="admin")


async def issued(desk: TokenRegistry, name: str | None, expires_s: int = DAY_S) -> str:
    _, info = await desk.issue(
        role="client", expires_s=expires_s, subject=None, name=name, by=local("ana")
    )
    return info.id


async def test_a_named_token_is_listed_with_its_name_as_subject(
    desk: TokenRegistry,
) -> None:
    """Unless the request names another subject."""
    jti = await issued(desk, "ci")

    (info,) = await desk.list_tokens()

    assert (info.id, info.name, info.subject) == (jti, "ci", "ci")
    assert (info.issued_by, info.revoked_ms) == ("ana", None)


async def test_a_token_for_a_day_needs_no_name_and_is_not_listed(
    desk: TokenRegistry,
) -> None:
    """Scripts make hundreds of them."""
    await issued(desk, None)

    assert await desk.list_tokens() == ()


async def test_a_token_for_longer_gets_a_name(desk: TokenRegistry) -> None:
    """A token that is valid for weeks must be listed."""
    jti = await issued(desk, None, DAY_S + 1)

    (info,) = await desk.list_tokens()

    assert (info.name, info.subject) == (f"client-{jti[:8]}", "ana")


async def test_a_name_is_free_again_once_its_token_is_revoked(
    desk: TokenRegistry,
) -> None:
    """The next revocation applies to the later token."""
    first = await issued(desk, "ci")
    with pytest.raises(TokenExists):
        await issued(desk, "ci")
    await desk.revoke("ci", by="bo")

    second = await issued(desk, "ci")
    revoked = await desk.revoke("ci", by="bo")

    assert revoked.id == second != first


async def test_a_revoked_token_is_refused(desk: TokenRegistry) -> None:
    """By its name, by its id, and twice."""
    jti = await issued(desk, "ci")
    shown = Principal(subject="ci", role="client", token=jti)
    assert desk.is_valid(shown)

    by_name = await desk.revoke("ci", by="bo")
    by_id = await desk.revoke(jti, by="cy")

    assert not desk.is_valid(shown)
    assert by_name == by_id
    assert by_id.revoked_by == "bo"


async def test_a_token_without_a_name_is_revoked_by_its_id(desk: TokenRegistry) -> None:
    """Its holder knows the id of the unlisted token."""
    jti = await issued(desk, None)

    assert (await desk.revoke(jti, by="bo")).id == jti
    assert not desk.is_valid(Principal(subject="x", role="client", token=jti))


async def test_an_unknown_token_name_is_an_error(desk: TokenRegistry) -> None:
    """A typing error must not look like success."""
    with pytest.raises(TokenNotFound):
        await desk.revoke("ic", by="bo")


async def test_only_the_dispatcher_writes_the_list(
    desk: TokenRegistry, dispatcher_role: DispatcherRole
) -> None:
    """Another node forwards."""
    dispatcher_role.is_over = True

    for ask in (desk.list_tokens(), desk.revoke("ci", by="bo"), issued(desk, "ci")):
        with pytest.raises(NotDispatcher):
            await ask


async def test_a_verified_token_is_checked_again() -> None:
    """The cache of verified tokens must not outlast a token."""
    real = office(DispatcherRole())
    token, info = await real.issue(
        role="viewer", expires_s=60, subject=None, name=None, by=local("ana")
    )
    assert real.verify(token).token == info.id

    await real.revoke(info.id, by="ana")

    with pytest.raises(TrustError, match="token was revoked"):
        real.verify(token)


async def opened(desk: TokenRegistry, at_s: int = 0) -> Principal:
    """Return the caller with a dashboard token of this age in seconds."""
    _, info = desk.issue_session_token(subject="ana", role="admin", node=NodeId("n"))
    assert info.issued_ms is not None
    return Principal(
        subject="ana",
        role="admin",
        token=info.id,
        generation=1,
        session_node=NodeId("n"),
        session_started_s=info.issued_ms // 1000 - at_s,
    )


async def test_a_dashboard_token_is_short_and_renewed_under_its_id(
    desk: TokenRegistry, dispatcher_role: DispatcherRole
) -> None:
    """At any node, so a page survives a change of dispatcher."""
    dispatcher_role.is_over = True
    page = await opened(desk)

    _, renewed = desk.renew_session_token(page)

    assert (renewed.id, renewed.subject, renewed.role) == (page.token, "ana", "admin")
    assert renewed.expires_ms is not None
    assert renewed.issued_ms is not None
    assert renewed.expires_ms - renewed.issued_ms == SESSION_S * 1000


async def test_a_long_request_outlives_the_dashboard_token_that_began_it(
    signed: Signed,
) -> None:
    """An upload or a download takes as long as it takes while its page is renewed."""
    desk = signed.desk
    token, info = desk.issue_session_token(
        subject="ana", role="client", node=NodeId("n")
    )
    began = replace(desk.verify(token), expires_ms=1)
    assert not desk.is_valid(began)

    desk.renew_session_token(began)
    is_valid_when_renewed = desk.is_valid(began)
    await desk.revoke(info.id, by="ana")

    assert is_valid_when_renewed
    assert not desk.is_valid(began)


async def test_a_dashboard_session_ends_after_half_a_day(desk: TokenRegistry) -> None:
    """An abandoned browser does not stay signed in for ever."""
    page = await opened(desk, at_s=SESSION_S_MAX)

    with pytest.raises(TrustError):
        desk.renew_session_token(page)


async def test_only_a_dashboard_token_is_renewed(desk: TokenRegistry) -> None:
    """Any other would become valid for longer than its issuer allowed."""
    jti = await issued(desk, "ci")

    with pytest.raises(PermissionDenied):
        desk.renew_session_token(Principal(subject="ci", role="client", token=jti))


async def test_a_dashboard_session_ends_with_its_secret(
    signed: Signed,
) -> None:
    """A revoked machine could otherwise carry its tokens over into the new secret."""
    secret, signer, desk = signed
    token, _ = desk.issue_session_token(subject="eve", role="admin", node=NodeId("n"))
    page = desk.verify(token)
    desk.renew_session_token(page)

    signer.use_secret(
        secret.with_new_generation(bytes(20), 1, revoked=None).with_newest_in_force(2)
    )

    with pytest.raises(TrustError, match="opened too long ago"):
        desk.renew_session_token(page)


async def test_a_token_is_valid_as_long_as_the_secret_that_signed_it(
    signed: Signed,
) -> None:
    """A stream under a token of a revoked machine would outlast the rotation."""
    secret, signer, desk = signed
    token, _ = await desk.issue(
        role="viewer", expires_s=60, subject="eve", name=None, by=local("root")
    )
    eve = desk.verify(token)

    newer = secret.with_new_generation(bytes(20), 1)
    signer.use_secret(newer)
    assert desk.is_valid(eve)
    signer.use_secret(newer.with_newest_only(2))

    assert not desk.is_valid(eve)


async def test_an_urgent_rotation_ends_tokens_of_the_old_secret_at_once(
    signed: Signed,
) -> None:
    """Any holder of that secret can make tokens; those made now stay valid."""
    secret, signer, desk = signed
    request: Any = {"role": "admin", "expires_s": 60, "subject": None, "name": None}
    token, _ = await desk.issue(**request, by=local("root"))
    old = desk.verify(token)

    newer = secret.with_new_generation(bytes(20), 1, revoked=NodeId("n" * 16))
    signer.use_secret(newer)

    assert not desk.is_valid(old)
    with pytest.raises(TrustError):
        desk.verify(token)
    late, _ = await desk.issue(**request, by=local("root"))
    signer.use_secret(newer.with_newest_only(2))
    assert desk.is_valid(desk.verify(late))


async def test_a_token_issues_none_that_outlasts_its_secret(signed: Signed) -> None:
    """A holder of the old secret could make a 90-day token while both are accepted."""
    secret, signer, desk = signed
    request: Any = {"role": "admin", "expires_s": 60, "subject": None, "name": None}
    token, _ = await desk.issue(**request, by=local("root"))
    admin = desk.verify(token)

    newer = secret.with_new_generation(bytes(20), 1, revoked=None)
    signer.use_secret(newer)
    early, _ = await desk.issue(**request, by=admin)
    assert desk.verify(early).generation == admin.generation
    signer.use_secret(newer.with_newest_in_force(2))
    with pytest.raises(PermissionDenied, match="older secret"):
        await desk.issue(**request, by=admin)

    late, _ = await desk.issue(**request, by=local("root"))
    await desk.issue(**request, by=desk.verify(late))


async def test_a_name_of_any_length_fits_into_a_record() -> None:
    """A record that is too large would be a fault of this node."""
    real = office(DispatcherRole())
    long = "é" * 128
    _, info = await real.issue(
        role="viewer", expires_s=60, subject=long, name="n" * 64, by=local("🦊" * 256)
    )

    assert (await real.revoke(info.id, by="🦊" * 256)).revoked_ms is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"name": {"a": 1}}',
        b'{"issued_ms": "yesterday"}',
        b'{"issued_ms": 1e300}',
        b'{"at_ms": 99999999999999999}',
    ],
)
async def test_a_malformed_record_hides_no_other_token(body: bytes) -> None:
    """A token that cannot be listed cannot be revoked by its name."""
    records = MemoryRecords()
    desk = TokenService(
        TokenSigner(generate_secret()), records, SystemClock(), DispatcherRole().require
    )
    odd, until_ms = "0" * 32, 1 << 46
    await records.write_records(RecordDraft(TOKEN, odd, body, until_ms))
    await records.write_records(RecordDraft(TOKEN_REVOKED, odd, body, until_ms))
    good = await issued(desk, "ci")

    shown = [
        (info.id, info.name, info.issued_ms, info.revoked_ms)
        for info in await desk.list_tokens()
        if info.id == odd
    ]

    assert shown == [(odd, None, None, None)]
    assert (await desk.revoke("ci", by="ana")).id == good
