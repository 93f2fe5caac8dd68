"""Mesh secret: generations, revocations, derived keys, and its file.

A generation is 160 random bits, written as `okm1-`, 32 base32 characters and 4 of
checksum. The file has one line per generation, oldest first. The last one is in force
unless it is marked `next`; all are accepted. A single plain line is generation 1, and
the mesh id is derived from it. After a renewal, each line contains its number and the
mesh id, so that older lines can be removed without a change of the mesh id.
"""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from octaskly.core.model.ids import NodeId
from octaskly.core.model.keyring_state import (
    REVOKED_MAX,
    ChangeKeyring,
    KeyringState,
    KeyringStep,
)
from octaskly.errors import ConfigError, TrustError
from octaskly.trust import secret_format
from octaskly.trust.private_files import create_private, read_private
from octaskly.trust.secret_format import PREFIX, SECRET_BYTES

GENERATIONS_MAX: Final = 16
MESH_ID_BYTES: Final = 8
DIGEST_BYTES: Final = 8
KEY_BYTES: Final = 32
LAN_SEED_BYTES: Final = 48
RETIRED_MAX: Final = 4  #: retired generations with a retirement proof
_SALT: Final = b"octaskly/v1"


@dataclass(frozen=True, slots=True)
class MeshSecret:
    """The generations of a mesh secret that a node accepts; `repr` hides them."""

    generations: tuple[bytes, ...] = field(repr=False)  #: oldest first, at least one
    first_number: int = field(default=1, repr=False)  #: number of the oldest
    mesh_id: str = field(default="", repr=False)
    """Public name of the mesh, 16 hex digits, derived from generation 1."""
    has_next: bool = field(default=False, repr=False)  #: the newest is not in force yet
    is_urgent: bool = field(default=False, repr=False)  #: as in `KeyringState`
    phase_since_ms: int = field(default=0, repr=False)  #: as in `KeyringState`
    revocations: tuple[tuple[NodeId, int], ...] = field(default=(), repr=False)
    """Revoked nodes, sorted, each with the first generation that it never received.

    Once all older generations are retired, a revoked node cannot connect anyway. If
    there are too many entries, those with the oldest generations are dropped, but never
    the entry of a node that could still connect.
    """
    retired: tuple[tuple[int, str], ...] = field(default=(), repr=False)
    """Numbers of the last retired generations, each with its retirement proof."""

    def __post_init__(self) -> None:
        if not self.mesh_id:
            mesh_id = _derive(self.generations[0], "mesh-id", MESH_ID_BYTES).hex()
            object.__setattr__(self, "mesh_id", mesh_id)

    @property
    def newest(self) -> int:
        """Number of the newest generation."""
        return self.first_number + len(self.generations) - 1

    @property
    def generation(self) -> int:
        """Number of the generation in force."""
        return self.newest - 1 if self.has_next else self.newest

    @property
    def accepted(self) -> range:
        """Numbers of all generations, oldest first."""
        return range(self.first_number, self.newest + 1)

    @property
    def keys(self) -> KeyringState:
        """The public part of the secret, without its bytes."""
        return KeyringState(
            oldest=self.first_number,
            generation=self.generation,
            newest=self.newest,
            fingerprint=_derive(
                self._generation_bytes(self.newest), "mark", DIGEST_BYTES
            ).hex(),
            is_urgent=self.is_urgent,
            phase_since_ms=self.phase_since_ms,
            revoked=self.revoked,
        )

    @property
    def revoked(self) -> tuple[NodeId, ...]:
        """The revoked nodes, sorted."""
        return tuple(node for node, _ in self.revocations)

    def authority_seed(self, generation: int) -> bytes:
        """Return the 32 bytes of the certificate authority's Ed25519 key."""
        return _derive(self._generation_bytes(generation), "ca", KEY_BYTES)

    def lan_authority_seed(self, generation: int) -> bytes:
        """Return the 48-byte seed of the authority's P-256 key, for HTTPS listeners."""
        return _derive(self._generation_bytes(generation), "ca/lan", LAN_SEED_BYTES)

    def token_key(self, generation: int) -> bytes:
        """Return the 32-byte key that signs tokens."""
        return _derive(
            self._generation_bytes(generation), f"jwt/{generation}", KEY_BYTES
        )

    def webhook_key(self) -> bytes:
        """Return the 32-byte key that signs webhook requests."""
        label = f"webhook/{self.generation}"
        return _derive(self._generation_bytes(self.generation), label, KEY_BYTES)

    def retirement_proof(self, generation: int) -> str:
        """Return the proof that a generation is retired.

        Computing or verifying the proof requires the generation. The mesh can therefore
        publish the proof once the generation is retired. Nodes that still have this
        generation verify the proof.
        """
        return _derive(
            self._generation_bytes(generation), f"ended/{generation}", DIGEST_BYTES
        ).hex()

    # --- A newer generation ----------------------------------------------------------

    def with_change(self, change: ChangeKeyring, raw: bytes, now_ms: int) -> MeshSecret:
        """Return a copy after one step of a rotation.

        Args:
            change: The step. It has no effect if it is about another generation.
            raw: A new generation, in case it is needed.
            now_ms: Wall clock.

        Raises:
            TrustError: As `with_new_generation` and `with_revoked`.
        """
        is_about_newest = change.fingerprint == self.keys.fingerprint
        match change.step:
            case KeyringStep.RENEW:
                return self.with_new_generation(
                    raw, now_ms, revoked=change.revoked, is_urgent=change.is_urgent
                )
            case KeyringStep.REVOKE:
                return self.with_revoked(filter(None, (change.revoked,)))
            case KeyringStep.SWITCH:
                return self.with_newest_in_force(now_ms) if is_about_newest else self
            case KeyringStep.SETTLE:
                return self.with_newest_only(now_ms) if is_about_newest else self

    def with_new_generation(
        self,
        raw: bytes,
        now_ms: int,
        *,
        revoked: NodeId | None = None,
        is_urgent: bool = False,
    ) -> MeshSecret:
        """Return a copy with a new generation that is accepted but not yet in force.

        Args:
            raw: The new generation, from `generate_generation`.
            now_ms: Wall clock.
            revoked: A node to revoke; makes the renewal urgent.
            is_urgent: Renew even if the newest generation is not in force yet.

        Raises:
            TrustError: The newest generation is not in force yet, or 16 are accepted.
        """
        is_urgent = is_urgent or revoked is not None
        if self.has_next and not is_urgent:
            raise TrustError(f"generation {self.newest} is not in force yet")
        if len(self.generations) >= GENERATIONS_MAX:
            raise TrustError(f"a secret has at most {GENERATIONS_MAX} generations")
        kept = self.with_newest_in_force(now_ms) if self.has_next else self
        newer = replace(
            kept,
            generations=(*kept.generations, raw),
            has_next=True,
            is_urgent=is_urgent,
            phase_since_ms=now_ms,
        )
        return (
            newer
            if revoked is None
            else _with_revocations(newer, {revoked: newer.newest})
        )

    def with_newest_in_force(self, now_ms: int) -> MeshSecret:
        """Return a copy with the newest generation in force."""
        if not self.has_next:
            return self
        return replace(self, has_next=False, phase_since_ms=now_ms)

    def with_newest_only(self, now_ms: int) -> MeshSecret:
        """Return a copy with only the newest generation, in force."""
        if len(self.generations) == 1:
            return self
        gone = tuple((old, self.retirement_proof(old)) for old in self.accepted[:-1])
        return replace(
            self,
            generations=self.generations[-1:],
            first_number=self.newest,
            has_next=False,
            is_urgent=False,
            phase_since_ms=now_ms,
            retired=(*self.retired, *gone)[-RETIRED_MAX:],
        )

    def with_revoked(self, nodes: Iterable[NodeId]) -> MeshSecret:
        """Return a copy that also revokes these nodes.

        They may have all current generations, and must not receive a newer one.

        Raises:
            TrustError: Too many revoked nodes may have an accepted generation.
        """
        return _with_revocations(self, dict.fromkeys(nodes, self.newest + 1))

    def merged_with(self, other: MeshSecret) -> MeshSecret:
        """Return the later of two keyrings of one mesh, with the revocations of both.

        Raises:
            TrustError: The other one is of another mesh.
        """
        if other.mesh_id != self.mesh_id:
            raise TrustError(f"that is the secret of another mesh, {other.mesh_id}")
        return _with_revocations(
            self._later_of(other),
            _newest_revocations(self.revocations, other.revocations),
        )

    def merged_with_received(
        self, other: MeshSecret, raw: bytes, now_ms: int, *, own_id: NodeId
    ) -> MeshSecret:
        """Return the merged keyring; add a generation if a revoked node has the newest.

        If two nodes are revoked in different places at once, each place sends its new
        generation to the node that the other place has revoked.

        Args:
            other: The keyring of a peer.
            raw: The new generation, in case it is needed.
            now_ms: Wall clock.
            own_id: This node. A revoked node never adds a generation.

        Raises:
            TrustError: As `merged_with` and `with_new_generation`.
        """
        both = self.merged_with(other)
        added = {*both.revoked} - {*self._later_of(other).revoked}
        if not added or own_id in both.revoked:
            return both
        newer = both.with_new_generation(raw, now_ms, revoked=min(added))
        return _with_revocations(newer, dict.fromkeys(added, newer.newest))

    def _later_of(self, other: MeshSecret) -> MeshSecret:
        return other if self.keys.rank < other.keys.rank else self

    def to_text(self) -> str:
        """Return the content of a secret file."""
        if self == MeshSecret(self.generations):
            # This form can be read by all versions.
            return "".join(
                f"{secret_format.format_generation(raw)}\n" for raw in self.generations
            )
        text = "".join(map(self._line, self.accepted))
        text += "".join(
            f"{secret_format.RETIRED}={n}:{proof}\n" for n, proof in self.retired
        )
        for node, number in self.revocations:
            text += f"{secret_format.REVOKED}={f'{number}:' if number else ''}{node}\n"
        return text

    def _line(self, number: int) -> str:
        words = [
            secret_format.format_generation(self._generation_bytes(number)),
            f"generation={number}",
        ]
        words.append(f"mesh={self.mesh_id}")
        if number == self.newest:
            words += [f"since={self.phase_since_ms}"]
            words += ["next"] * self.has_next + ["urgent"] * self.is_urgent
        return " ".join(words) + "\n"

    def _generation_bytes(self, generation: int) -> bytes:
        return self.generations[generation - self.first_number]


def generate_secret() -> MeshSecret:
    """Return a new secret of one generation, from the system's random source."""
    return MeshSecret((generate_generation(),))


def generate_generation() -> bytes:
    """Return a new random generation."""
    return secrets.token_bytes(SECRET_BYTES)


def parse_secret(text: str) -> MeshSecret:
    """Return the secret in the text of a secret file.

    Empty lines and lines that start with `#` are skipped.

    Raises:
        TrustError: There is no generation, or a line is malformed. The error does not
            contain any of the text.
    """
    page = secret_format.parse_lines(text)
    if not 1 <= len(page.generations) <= GENERATIONS_MAX:
        raise TrustError(f"a secret has 1 to {GENERATIONS_MAX} {PREFIX} lines")
    first = page.numbers[0]
    if page.numbers != tuple(range(first, first + len(page.numbers))):
        raise TrustError("the generation numbers are not consecutive")
    if first > 1 and not page.mesh_id:
        raise TrustError("mesh=ID is missing, which is required without generation 1")
    if page.has_next and len(page.generations) == 1:
        raise TrustError("the only generation of a secret cannot be marked next")
    secret = MeshSecret(
        page.generations,
        first_number=first,
        mesh_id=page.mesh_id,
        has_next=page.has_next,
        is_urgent=page.is_urgent,
        phase_since_ms=page.phase_since_ms,
        retired=page.retired[-RETIRED_MAX:],
    )
    return _with_revocations(secret, _newest_revocations((), page.revocations))


def load_secret(path: Path, environ: Mapping[str, str] = os.environ) -> MeshSecret:
    """Read the secret file.

    A file in systemd's `CREDENTIALS_DIRECTORY` may have any mode: systemd protects it.

    Raises:
        ConfigError: It is missing, unreadable or malformed, or others may read it.
    """
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    is_guarded = bool(credentials) and path.parent == Path(credentials or "")
    try:
        data = read_private(path, may_be_shared=is_guarded)
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no mesh secret at {path}",
            hint="octaskly secret new | install -m 600 /dev/stdin "
            + shlex.quote(str(path)),
        ) from error
    try:
        return parse_secret(data.decode("ascii"))
    except (UnicodeDecodeError, TrustError) as error:
        # No cause is attached: a decoding error would contain the bytes.
        reason = error if isinstance(error, TrustError) else "it is not plain text"
        raise ConfigError(
            f"{path} is not a mesh secret: {reason}",
            hint=f"copy {path} again from a node of the mesh",
        ) from None


def load_or_create_secret(
    path: Path, environ: Mapping[str, str] = os.environ
) -> MeshSecret:
    """Read the secret file; create it with a new secret if it does not exist.

    Concurrent processes all get the same secret.

    Raises:
        ConfigError: As `load_secret`, or the file cannot be created.
    """
    create_secret_file(path)
    return load_secret(path, environ)


def create_secret_file(path: Path) -> bool:
    """Create a secret file unless it exists; return True if this call created it.

    Of several concurrent processes, exactly one creates it.

    Raises:
        ConfigError: The file cannot be created.
    """
    # `exists` would return False for an unreadable file; `load_secret` reports those.
    if os.path.lexists(path):
        return False
    return create_private(path, generate_secret().to_text().encode())


def _with_revocations(secret: MeshSecret, denials: Mapping[NodeId, int]) -> MeshSecret:
    """Return a copy that also revokes these nodes; the order of calls has no effect."""
    found = _newest_revocations(secret.revocations, denials.items())
    kept = sorted(found, key=lambda node: (found[node], node))[-REVOKED_MAX:]
    if any(found[node] > secret.first_number for node in found.keys() - {*kept}):
        raise TrustError(f"more than {REVOKED_MAX} nodes are revoked at once")
    return replace(
        secret, revocations=tuple((node, found[node]) for node in sorted(kept))
    )


def _newest_revocations(
    some: Iterable[tuple[NodeId, int]], more: Iterable[tuple[NodeId, int]]
) -> dict[NodeId, int]:
    """Merge two lists of revocations; the higher generation of a node wins."""
    found = dict(some)
    for node, number in more:
        found[node] = max(number, found.get(node, 0))
    return found


def _derive(secret: bytes, label: str, length: int) -> bytes:
    kdf = HKDF(algorithm=SHA256(), length=length, salt=_SALT, info=label.encode())
    return kdf.derive(secret)
