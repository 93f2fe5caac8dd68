"""The mesh secret: its text, its file, and the keys derived from it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from octaskly.core.model.ids import NodeId
from octaskly.core.model.keyring_state import (
    REVOKED_MAX,
    ChangeKeyring,
    KeyringStep,
)
from octaskly.errors import ConfigError, TrustError
from octaskly.trust.mesh_secret import (
    GENERATIONS_MAX,
    RETIRED_MAX,
    MeshSecret,
    generate_generation,
    generate_secret,
    load_or_create_secret,
    load_secret,
    parse_secret,
)
from octaskly.trust.node_key import NodeKey, node_id_of
from octaskly.trust.private_files import create_private

KNOWN = MeshSecret((bytes(range(20)),))
KNOWN_LINE = "okm1-aaaqeayeaudaocajbifqydiob4ibceqtxnl3"


@pytest.fixture(params=[0o000, 0o022, 0o777], ids=lambda mask: f"umask {mask:03o}")
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the test under several umasks; none may change the modes of files."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def write(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def test_a_known_secret_keeps_its_text_and_derived_keys() -> None:
    """Nodes of all versions must agree on these values."""
    assert KNOWN.to_text() == f"{KNOWN_LINE}\n"
    assert KNOWN.mesh_id == "96dbb607b64e3ad5"
    assert KNOWN.authority_seed(1).hex()[:16] == "4ebd1f13175b293a"
    assert KNOWN.token_key(1).hex()[:16] == "5e5f1522cbc6428d"


def test_a_secret_survives_writing_and_reading() -> None:
    """Capitals, spaces, comments and empty lines do no harm."""
    secret = generate_secret()

    assert parse_secret(secret.to_text()) == secret
    assert (
        parse_secret(f"# mesh\n\n  {secret.to_text().strip().upper()}  \r\n") == secret
    )


def test_two_secrets_differ() -> None:
    """Each has 160 random bits."""
    assert generate_secret() != generate_secret()


def test_a_secret_is_never_printed() -> None:
    """Not in a log line, a traceback or a debugger's list of variables."""
    secret = generate_secret()

    assert repr(secret) == "MeshSecret()"


def test_a_second_generation_keeps_the_mesh_id_and_signs_with_its_own_keys() -> None:
    """The mesh stays the same mesh when its secret is renewed."""
    both = parse_secret(KNOWN.to_text() + generate_secret().to_text())

    assert both.generation == 2
    assert both.mesh_id == KNOWN.mesh_id
    assert both.token_key(1) == KNOWN.token_key(1)
    assert both.token_key(2) != KNOWN.token_key(1)
    assert both.authority_seed(2) != KNOWN.authority_seed(1)


def rotated(times: int = 1) -> MeshSecret:
    """Return the known secret after this many complete rotations."""
    secret = KNOWN
    for turn in range(times):
        secret = secret.with_new_generation(
            generate_generation(), turn, revoked=None
        ).with_newest_in_force(turn)
        secret = secret.with_newest_only(turn)
    return secret


def test_the_removal_of_an_old_generation_changes_no_name() -> None:
    """Mesh id, number and keys of the remaining generation stay the same."""
    both = KNOWN.with_new_generation(
        generate_generation(), 5, revoked=None
    ).with_newest_in_force(6)

    alone = both.with_newest_only(7)

    assert len(alone.generations) == 1
    assert (alone.generation, alone.mesh_id) == (2, KNOWN.mesh_id)
    assert alone.token_key(2) == both.token_key(2)
    assert alone.authority_seed(2) == both.authority_seed(2)
    assert alone.webhook_key() == both.webhook_key()


def test_a_future_generation_is_accepted_but_not_in_force() -> None:
    """Until all nodes know it, none may use it."""
    spreading = KNOWN.with_new_generation(generate_generation(), 5, revoked=None)

    assert list(spreading.accepted) == [1, 2]
    assert spreading.generation == 1
    assert spreading.webhook_key() == KNOWN.webhook_key()
    assert spreading.with_newest_in_force(6).generation == 2


def test_every_phase_survives_writing_and_reading() -> None:
    """A restart in the middle of a rotation continues it."""
    node = node_id_of(b"k" * 32)
    spreading = rotated().with_new_generation(generate_generation(), 5, revoked=node)
    for secret in (
        spreading,
        spreading.with_newest_in_force(6),
        spreading.with_newest_only(7),
        rotated(9),
    ):
        assert parse_secret(secret.to_text()) == secret
        assert parse_secret(secret.to_text().upper()) == secret


def test_an_older_version_refuses_a_rotated_secret() -> None:
    """It would take each line for the next number; it must refuse instead."""
    spreading = KNOWN.with_new_generation(generate_generation(), 5, revoked=None)

    assert all(" generation=" in line for line in spreading.to_text().splitlines())
    assert rotated().to_text().startswith("okm1-")
    assert " generation=2 mesh=96dbb607b64e3ad5 " in rotated().to_text()


def test_a_fresh_generation_follows_from_no_other() -> None:
    """A holder of an old one learns nothing of later ones."""
    assert rotated().generations != rotated().generations


def test_a_holder_of_a_generation_can_verify_its_end() -> None:
    """Strangers cannot make that proof, and see it only once it is true."""
    proofs = dict(rotated().retired)

    assert proofs == {1: KNOWN.retirement_proof(1)}
    assert generate_secret().retirement_proof(1) != KNOWN.retirement_proof(1)
    assert len(rotated(9).retired) == RETIRED_MAX


@pytest.mark.parametrize("step", [KeyringStep.SWITCH, KeyringStep.SETTLE])
def test_a_step_applies_only_to_the_generation_that_it_was_decided_for(
    step: KeyringStep,
) -> None:
    """A newer one, which few nodes have, may arrive before the step is written."""
    switched = KNOWN.with_new_generation(generate_generation(), 1).with_newest_in_force(
        2
    )
    change = ChangeKeyring(step, fingerprint=switched.keys.fingerprint)
    merged = switched.merged_with(
        switched.with_new_generation(generate_generation(), 3)
    )

    assert merged.with_change(change, generate_generation(), 4) == merged


def test_a_step_for_the_newest_generation_puts_it_in_force_and_ends_the_others() -> (
    None
):
    """First the one, later the other."""
    both = KNOWN.with_new_generation(generate_generation(), 1)
    newest = both.keys.fingerprint
    switch = ChangeKeyring(KeyringStep.SWITCH, fingerprint=newest)
    settle = ChangeKeyring(KeyringStep.SETTLE, fingerprint=newest)

    switched = both.with_change(switch, generate_generation(), 2)
    settled = switched.with_change(settle, generate_generation(), 3)

    assert (switched.generation, list(switched.accepted)) == (2, [1, 2])
    assert (settled.generation, list(settled.accepted)) == (2, [2])


def test_a_second_rotation_waits_until_the_first_is_in_force() -> None:
    """Nodes never have to learn two generations at once."""
    spreading = KNOWN.with_new_generation(generate_generation(), 5, revoked=None)

    with pytest.raises(TrustError, match="not in force yet"):
        spreading.with_new_generation(generate_generation(), 6, revoked=None)


def test_a_revocation_does_not_wait_for_a_rotation() -> None:
    """The revoked node may know the generation that was still spreading."""
    node = node_id_of(b"k" * 32)

    urgent = KNOWN.with_new_generation(
        generate_generation(), 5, revoked=None
    ).with_new_generation(generate_generation(), 6, revoked=node)

    assert (urgent.generation, urgent.newest) == (2, 3)
    assert urgent.is_urgent
    assert urgent.revoked == (node,)


def test_generations_and_revoked_nodes_are_bounded() -> None:
    """A file has its bounds, whoever sends it."""
    secret = KNOWN
    while len(secret.generations) < GENERATIONS_MAX:
        secret = secret.with_new_generation(
            generate_generation(), 1, revoked=None
        ).with_newest_in_force(2)
    many = [node_id_of(str(i).encode()) for i in range(REVOKED_MAX + 1)]

    with pytest.raises(TrustError, match="at most"):
        secret.with_new_generation(generate_generation(), 1, revoked=None)
    with pytest.raises(TrustError, match="revoked at once"):
        KNOWN.with_revoked(many)


def test_the_bound_on_revoked_nodes_readmits_none_of_them() -> None:
    """A node that may still have an accepted generation is never forgotten."""
    many = [NodeId(f"{i:016}") for i in range(REVOKED_MAX)]
    full = (
        KNOWN.with_revoked(many)
        .with_new_generation(generate_generation(), 1, revoked=None)
        .with_newest_in_force(2)
        .with_newest_only(3)
    )
    last = NodeId("z" * 16)

    spreading = full.with_new_generation(generate_generation(), 5, revoked=last)
    settled = spreading.with_newest_only(6)
    later = settled.with_new_generation(
        generate_generation(), 7, revoked=NodeId("0" * 15 + "x")
    )

    assert last in spreading.revoked
    assert len(spreading.revoked) == REVOKED_MAX
    assert last in parse_secret(settled.merged_with(full).to_text()).revoked
    assert spreading.merged_with(full) == full.merged_with(spreading) == spreading
    assert {last, NodeId("0" * 15 + "x")} <= {*later.revoked}


def test_a_file_without_the_generation_of_a_denial_is_read() -> None:
    """An older version wrote it; such nodes are forgotten first."""
    old = parse_secret(f"{KNOWN_LINE} generation=3 mesh=96dbb607b64e3ad5\ndenied=abc\n")

    assert old.revocations == ((NodeId("abc"), 0),)
    assert parse_secret(old.to_text()) == old


def test_two_keyrings_merge_alike_on_both_sides() -> None:
    """Two halves of a split renewed the secret: all choose the same generation."""
    one, two = (
        KNOWN.with_new_generation(generate_generation(), 5, revoked=None)
        for _ in range(2)
    )
    denied = two.with_revoked([node_id_of(b"k" * 32)])

    assert one.merged_with(denied) == denied.merged_with(one)
    assert one.merged_with(denied).revoked == denied.revoked
    assert one.with_newest_in_force(6).merged_with(two) == one.with_newest_in_force(6)
    assert two.merged_with(
        one.with_newest_in_force(6).with_newest_only(7)
    ) == one.with_newest_in_force(6).with_newest_only(7)


def test_a_keyring_of_another_mesh_is_never_merged() -> None:
    """A peer's message cannot move a node into another mesh."""
    with pytest.raises(TrustError, match="another mesh"):
        KNOWN.merged_with(generate_secret())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "hunter2",
        "okm1-",
        KNOWN_LINE[:-1],
        KNOWN_LINE + "a",
        KNOWN_LINE[5:],
        KNOWN_LINE.replace("okm1", "okm2"),
        KNOWN_LINE.replace("aaaq", "aaqa"),
        KNOWN_LINE.replace("aaaq", "aa1q"),
        KNOWN_LINE.replace("aaaq", "aaäq"),
        KNOWN_LINE[:-1] + "\u017f",
        f"{KNOWN_LINE} {KNOWN_LINE}",
        f"{KNOWN_LINE}\nrubbish",
        f"{KNOWN_LINE}\n" * 17,
        f"{KNOWN_LINE} generation=2",
        f"{KNOWN_LINE} generation=0 mesh=96dbb607b64e3ad5",
        f"{KNOWN_LINE} generation=1 generation=1",
        f"{KNOWN_LINE} mesh=96dbb607b64e3ad",
        f"{KNOWN_LINE} next",
        f"{KNOWN_LINE} next=1\n{KNOWN_LINE}",
        f"{KNOWN_LINE}\n{KNOWN_LINE} next\n{KNOWN_LINE}",
        f"{KNOWN_LINE}\n{KNOWN_LINE} generation=3",
        f"{KNOWN_LINE} mesh=96dbb607b64e3ad5\n{KNOWN_LINE} mesh=06dbb607b64e3ad5",
        f"{KNOWN_LINE} later",
        f"{KNOWN_LINE}\nended=1:96dbb607b64e3ad",
        f"{KNOWN_LINE}\ndenied=some body",
        "ended=1:96dbb607b64e3ad5",
    ],
)
def test_a_malformed_secret_is_refused_without_repeating_it(text: str) -> None:
    """The checksum finds a typing mistake, which never reaches a log."""
    with pytest.raises(TrustError) as caught:
        parse_secret(text)

    assert "aaqeaye" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_error_for_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    """The hint is a command that names the path."""
    path = tmp_path / "mesh.key"

    with pytest.raises(ConfigError) as caught:
        load_secret(path)

    assert str(path) in str(caught.value)
    new = "octaskly secret new | install -m 600 /dev/stdin"
    assert caught.value.hint == f"{new} {path}"


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o610, 0o602])
def test_a_file_that_others_can_access_is_refused(tmp_path: Path, mode: int) -> None:
    """The hint is the command that helps."""
    path = write(tmp_path / "mesh.key", KNOWN.to_text(), mode)

    with pytest.raises(ConfigError, match=f"{mode:04o}") as caught:
        load_secret(path)

    assert caught.value.hint == f"chmod 600 {path}"


def test_a_credential_of_systemd_may_have_any_mode(tmp_path: Path) -> None:
    """Its folder protects it instead."""
    path = write(tmp_path / "mesh.key", KNOWN.to_text(), 0o444)

    assert load_secret(path, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == KNOWN
    with pytest.raises(ConfigError):
        load_secret(path, {"CREDENTIALS_DIRECTORY": str(tmp_path / "other")})


@pytest.mark.parametrize(
    "content", [b"", b"rubbish", b"\xff\xfe", b"okm1-" * 100_000], ids=len
)
def test_a_file_with_other_content_is_refused_and_not_changed(
    tmp_path: Path, content: bytes
) -> None:
    """It may be a user's only copy of something else."""
    path = write(tmp_path / "mesh.key", content)

    with pytest.raises(ConfigError, match=r"mesh\.key"):
        load_or_create_secret(path)

    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["folder", "fifo", "loop", "below a file"])
def test_a_path_to_no_regular_file_is_refused_at_once(
    tmp_path: Path, kind: str
) -> None:
    """Neither a FIFO nor a broken link may block the start."""
    path = tmp_path / "mesh.key"
    match kind:
        case "folder":
            path.mkdir(mode=0o700)
        case "fifo":
            os.mkfifo(path, 0o600)
        case "loop":
            path.symlink_to(path)
        case _:
            write(path, "")
            path = path / "mesh.key"

    with pytest.raises(ConfigError) as caught:
        load_or_create_secret(path)

    assert caught.value.hint


def test_a_broken_link_is_reported_as_missing(tmp_path: Path) -> None:
    """It is not followed to create a file in some other place."""
    path = tmp_path / "mesh.key"
    path.symlink_to(tmp_path / "gone")

    with pytest.raises(ConfigError, match="no mesh secret"):
        load_or_create_secret(path)

    assert not (tmp_path / "gone").exists()


@pytest.mark.usefixtures("umask")
def test_a_new_secret_is_private_under_any_umask(tmp_path: Path) -> None:
    """The mode does not depend on the start of the agent."""
    path = tmp_path / "mesh.key"

    secret = load_or_create_secret(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_secret(path) == secret
    assert list(tmp_path.iterdir()) == [path]


def test_the_folder_of_a_new_secret_is_made_private(tmp_path: Path) -> None:
    """On a fresh machine there is no configuration folder yet."""
    path = tmp_path / "config" / "octaskly" / "mesh.key"

    load_or_create_secret(path)

    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_processes_that_start_at_once_share_one_secret(tmp_path: Path) -> None:
    """Several agents of one user form one mesh without configuration."""
    path = tmp_path / "mesh.key"
    code = (
        "import sys; from pathlib import Path\n"
        "from octaskly.trust.mesh_secret import load_or_create_secret\n"
        "sys.stdout.write('ready\\n'); sys.stdout.flush(); sys.stdin.readline()\n"
        "print(load_or_create_secret(Path(sys.argv[1])).mesh_id)"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for child in children:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"

    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [child.communicate() for child in children]

    assert {out.strip() for out, _ in answers} == {load_secret(path).mesh_id}
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_created_exclusively(tmp_path: Path) -> None:
    """A file that another process made in the meantime is never replaced."""
    path = write(tmp_path / "mesh.key", KNOWN.to_text())

    assert create_private(path, b"other") is False
    assert load_secret(path) == KNOWN


@pytest.mark.usefixtures("umask")
def test_a_node_keeps_its_key_and_with_it_its_id(tmp_path: Path) -> None:
    """The id is lower-case base32 and is derived from the key alone."""
    first = NodeKey.load_or_create(tmp_path)
    again = NodeKey.load_or_create(tmp_path)

    assert again.node_id == first.node_id
    assert len(first.node_id) == 16
    assert set(first.node_id) <= set("abcdefghijklmnopqrstuvwxyz234567")
    assert stat.S_IMODE((tmp_path / "node.key").stat().st_mode) == 0o600


def test_a_known_key_keeps_its_id() -> None:
    """Ids are stored in databases; they must not change between versions."""
    assert node_id_of(bytes(32)) == "mzuhvlpymk6xo3ep"


def test_a_damaged_node_key_is_refused_and_not_changed(tmp_path: Path) -> None:
    """A new key would be a new node; people must decide that."""
    path = write(tmp_path / "node.key", "-----BEGIN PRIVATE KEY-----\nx\n")

    with pytest.raises(ConfigError, match=r"node\.key is not an Ed25519 key"):
        NodeKey.load_or_create(tmp_path)

    assert path.read_text().startswith("-----BEGIN")
