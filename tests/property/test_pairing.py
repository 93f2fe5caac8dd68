"""Pairing as two sides without I/O, with right, wrong and invented bytes."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octaskly.core.protocol.messages import PROTOCOL_VERSION
from octaskly.errors import PairingFailed
from octaskly.joining.fingerprint import (
    WORDS,
    KeyShare,
    commitment,
    fingerprint,
    verify_commitment,
    words_of,
)
from octaskly.joining.greeting import (
    CLOCK_SKEW_MS_MAX,
    Greeting,
    PairingRefused,
    RefusalReason,
)
from octaskly.joining.key_exchange import (
    LONG_BYTES,
    SEALED_BYTES,
    SHARE_BYTES,
    SLOT_MAX,
    InviteCode,
    KeyExchange,
    PairingKeys,
    is_proof_valid,
    seal_secret,
    unseal_secret,
)
from octaskly.trust import NodeKey

CODES = st.builds(
    InviteCode,
    st.integers(1, SLOT_MAX),
    st.one_of(
        st.integers(0, 10**8 - 1).map(lambda number: f"{number:08}"),
        st.binary(min_size=LONG_BYTES, max_size=LONG_BYTES).map(bytes.hex),
    ),
)
LONG_CODE = InviteCode(1, "0" * 2 * LONG_BYTES)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}", fullmatch=True)
GREETINGS = st.builds(
    Greeting,
    name=NAMES,
    key=st.binary(min_size=32, max_size=32),
    wall_ms=st.integers(0, 2**63),
    slot_or_port=st.integers(0, 2**16 - 1),
    refusal=st.sampled_from(RefusalReason),
)
KEYRING = "okm1-not-really\n" * 3
#: Pure Python on a curve: some ten milliseconds for each run.
FEW = settings(max_examples=25, deadline=None)


def run(
    joiner: InviteCode, member: InviteCode, hello: bytes, welcome: bytes
) -> tuple[PairingKeys, PairingKeys]:
    """Let two sides that follow the protocol talk."""
    asking, showing = KeyExchange.for_joiner(joiner), KeyExchange.for_member(member)
    return (
        asking.derive_keys(showing.share, hello, welcome),
        showing.derive_keys(asking.share, hello, welcome),
    )


@given(code=CODES, hello=GREETINGS, welcome=GREETINGS)
@FEW
def test_the_same_code_gives_both_sides_the_keyring(
    code: InviteCode, hello: Greeting, welcome: Greeting
) -> None:
    """Both prove that they know the code, and the sealed keyring can be read."""
    joiner, member = run(code, code, hello.pack(), welcome.pack())

    assert is_proof_valid(joiner.joiner_proof(), member.joiner_proof())
    assert is_proof_valid(member.member_proof(), joiner.member_proof())
    assert joiner.joiner_proof() != joiner.member_proof()
    sealed = seal_secret(member, KEYRING)
    assert len(sealed) == SEALED_BYTES
    assert unseal_secret(joiner, sealed) == KEYRING


@given(right=CODES, wrong=CODES)
@FEW
def test_another_code_proves_nothing_and_reads_nothing(
    right: InviteCode, wrong: InviteCode
) -> None:
    """A wrong guess reveals neither the keyring nor how close the guess was."""
    if right == wrong or right.is_long is not wrong.is_long:
        return
    joiner, member = run(wrong, right, b"hello", b"welcome")

    assert not is_proof_valid(joiner.joiner_proof(), member.joiner_proof())
    assert not is_proof_valid(member.member_proof(), joiner.member_proof())
    with pytest.raises(PairingFailed, match="cannot be read"):
        unseal_secret(joiner, seal_secret(member, KEYRING))


@given(code=CODES, hello=GREETINGS, other=GREETINGS)
@FEW
def test_greetings_are_bound_to_the_keys(
    code: InviteCode, hello: Greeting, other: Greeting
) -> None:
    """A changed key, name or slot in a greeting makes the run fail."""
    if hello == other:
        return
    asking, showing = KeyExchange.for_joiner(code), KeyExchange.for_member(code)

    joiner = asking.derive_keys(showing.share, hello.pack(), b"welcome")
    member = showing.derive_keys(asking.share, other.pack(), b"welcome")

    assert not is_proof_valid(joiner.joiner_proof(), member.joiner_proof())


@given(code=CODES, share=st.binary(min_size=SHARE_BYTES, max_size=SHARE_BYTES))
@FEW
def test_any_share_is_handled(code: InviteCode, share: bytes) -> None:
    """The run ends in useless keys, or in the one expected error."""
    with contextlib.suppress(PairingFailed):
        KeyExchange.for_member(code).derive_keys(share, b"hello", b"welcome")


@pytest.mark.parametrize(
    "share",
    [
        pytest.param(b"A" + b"\x01" + bytes(31), id="neutral element"),
        pytest.param(b"A" + bytes(32), id="order 4"),
        pytest.param(b"A" + b"\xff" * 32, id="not canonical"),
        pytest.param(b"B" + b"\x01" * 32, id="own side"),
        pytest.param(b"?" + b"\x01" * 32, id="no side"),
    ],
)
def test_shares_that_would_fix_the_key_are_refused(share: bytes) -> None:
    """A member that accepted one would prove itself to an attacker without the code."""
    with pytest.raises(PairingFailed):
        KeyExchange.for_member(InviteCode(1, "00000000")).derive_keys(
            share, b"hello", b"welcome"
        )


def test_reflected_share_is_refused() -> None:
    """A reflected share does not prove knowledge of the code."""
    side = KeyExchange.for_member(InviteCode(1, "00000000"))

    with pytest.raises(PairingFailed):
        side.derive_keys(b"A" + side.share[1:], b"hello", b"welcome")


def test_a_share_of_low_order_is_refused_for_a_long_code() -> None:
    """It would make the key known, apart from the code."""
    with pytest.raises(PairingFailed):
        KeyExchange.for_member(LONG_CODE).derive_keys(bytes(SHARE_BYTES), b"", b"")


def test_tries_of_a_long_code_cost_little() -> None:
    """They do not end it, so a stranger could take the event loop of a member."""
    count, share = 50, KeyExchange.for_joiner(LONG_CODE).share
    began_s = time.thread_time()
    for _ in range(count):
        KeyExchange.for_member(LONG_CODE).derive_keys(share, b"hello", b"welcome")

    assert time.thread_time() - began_s < count * 0.003  # SPAKE2 takes 13 ms.


@given(greeting=GREETINGS)
def test_greeting_round_trips(greeting: Greeting) -> None:
    """No field is lost on the way."""
    assert Greeting.unpack(greeting.pack()) == greeting


def greeting(wall_ms: int = 0, refusal: RefusalReason = RefusalReason.NONE) -> Greeting:
    return Greeting(name="ash", key=bytes(32), wall_ms=wall_ms, refusal=refusal)


def test_clocks_that_differ_by_more_than_five_minutes_end_the_pairing() -> None:
    """The code is not used up."""
    greeting(CLOCK_SKEW_MS_MAX).require_compatible(0)

    with pytest.raises(PairingFailed, match="5 minutes apart") as failed:
        greeting(CLOCK_SKEW_MS_MAX + 1).require_compatible(0)

    assert failed.value.hint is not None
    assert "timedatectl" in failed.value.hint


@pytest.mark.parametrize("refusal", [one for one in RefusalReason if one])
def test_each_refusal_names_its_reason_and_the_remedy(refusal: RefusalReason) -> None:
    """Expired, used, no such slot: people act on them differently."""
    with pytest.raises(PairingRefused) as refused:
        greeting(refusal=refusal).require_compatible(0)

    assert refused.value.__cause__ is not None
    assert "octaskly invite" in str(refused.value.hint)


def test_another_version_is_named() -> None:
    """Both sides know which one is the older."""
    data = bytearray(greeting().pack())
    data[16:18] = bytes([PROTOCOL_VERSION + 1, PROTOCOL_VERSION + 1])

    with pytest.raises(PairingFailed, match="versions are not compatible"):
        Greeting.unpack(bytes(data))


def test_code_is_read_with_spaces_or_dashes() -> None:
    """Spaces may replace dashes; no other form is read."""
    code = InviteCode(7, "59371648")
    for text in ("7-5937-1648", " 7 5937 1648\n", "7-59371648"):
        assert InviteCode.parse(text) == code
    assert code.formatted() == "7-5937-1648"

    for text in ("", "7-5937-164", "0-5937-1648", "1000-5937-1648", "7_5937_1648"):
        with pytest.raises(PairingFailed) as failed:
            InviteCode.parse(text)
        assert "5937" not in str(failed.value)


def test_code_is_not_in_a_repr() -> None:
    """It is also absent from a traceback that a user pastes."""
    assert "48219375" not in repr(InviteCode(7, "48219375"))


def words(
    member: KeyShare, joiner: KeyShare, *, first: bytes, second: bytes, third: bytes
) -> tuple[str, str]:
    """Return the words that both sides show after these three messages."""
    return (
        fingerprint(member.derive_keys(joiner.public(), first, second, third)),
        fingerprint(joiner.derive_keys(member.public(), first, second, third)),
    )


def test_both_sides_show_the_same_words_and_can_read_each_other() -> None:
    """There is no attacker between them."""
    member, joiner = KeyShare.generate(), KeyShare.generate()
    first = b"hello" + commitment(b"hello", member.public())
    second = b"welcome" + joiner.public()

    shown = words(member, joiner, first=first, second=second, third=member.public())

    assert shown[0] == shown[1]
    assert len(shown[0].split("-")) == 3


def test_attacker_in_the_middle_gives_each_side_other_words() -> None:
    """The attacker must commit to its halves before it sees theirs."""
    shown = set()
    for _ in range(20):
        member, joiner, middle = (
            KeyShare.generate(),
            KeyShare.generate(),
            KeyShare.generate(),
        )
        first = b"hello" + commitment(b"hello", member.public())
        faked = b"hello" + commitment(b"hello", middle.public())
        second, other = b"welcome" + joiner.public(), b"welcome" + middle.public()
        at_member = member.derive_keys(middle.public(), first, other, member.public())
        at_joiner = joiner.derive_keys(middle.public(), faked, second, middle.public())
        assert fingerprint(at_member) != fingerprint(at_joiner)
        shown |= {fingerprint(at_member), fingerprint(at_joiner)}

    assert len(shown) == 40


def test_half_without_a_commitment_is_refused() -> None:
    """Otherwise a member, or an attacker, could try halves until the words match."""
    half, other = KeyShare.generate().public(), KeyShare.generate().public()
    promised = commitment(b"hello", half)

    verify_commitment(promised, b"hello", half)
    for greeted, opened in ((b"hello", other), (b"other", half)):
        with pytest.raises(PairingFailed):
            verify_commitment(promised, greeted, opened)


def test_a_key_of_low_order_is_refused() -> None:
    """Such a key would make the shared secret known to everyone."""
    with pytest.raises(PairingFailed):
        KeyShare.generate().derive_keys(bytes(64))


def test_there_is_a_word_for_each_byte_and_no_two_look_alike() -> None:
    """People compare the words, perhaps by telephone."""
    assert len(WORDS) == len({word[:4] for word in WORDS}) == 256
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)
    assert words_of(bytes([0, 255, 1])) == f"{WORDS[0]}-{WORDS[255]}-{WORDS[1]}"


def test_node_id_in_a_greeting_follows_from_its_key() -> None:
    """So a machine cannot claim another node's id and keep its own key."""
    key = NodeKey.generate()
    said = Greeting(name="ash", key=key.public_bytes(), wall_ms=0)

    assert said.node_id == key.node_id
