"""The file of a renewed secret: shared, locked, or not writable."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from octaskly.errors import ConfigError
from octaskly.trust.mesh_secret import MeshSecret, generate_generation, generate_secret
from octaskly.trust.secret_file import SecretFile

SECRET = generate_secret()


def keyring(tmp_path: Path, secret: MeshSecret = SECRET, **environ: str) -> SecretFile:
    """Return the keyring of an agent whose secret file has this secret."""
    state = tmp_path / "state"
    state.mkdir(exist_ok=True)
    path = tmp_path / "config" / "mesh.key"
    path.parent.mkdir(exist_ok=True)
    path.write_text(secret.to_text())
    path.chmod(0o600)
    return SecretFile(path, state, environ)


def renew(secret: MeshSecret) -> MeshSecret:
    return secret.with_new_generation(generate_generation(), 1, revoked=None)


def test_a_change_survives_a_restart(tmp_path: Path) -> None:
    """It is in the secret file itself, private, and no other file is left behind."""
    ring = keyring(tmp_path)

    changed = ring.update_secret(renew)

    assert ring.load() == changed
    assert stat.S_IMODE(ring.path.stat().st_mode) == 0o600
    assert [*ring.path.parent.iterdir()] == [ring.path]
    assert not ring.copy_path.exists()


def test_a_credential_is_not_changed_and_the_copy_prevails(tmp_path: Path) -> None:
    """A systemd credential is read-only, and has the old secret at each start."""
    ring = keyring(tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path / "config"))

    changed = ring.update_secret(renew)

    assert ring.path.read_text() == SECRET.to_text()
    assert stat.S_IMODE(ring.copy_path.stat().st_mode) == 0o600
    assert ring.load() == changed


def test_a_file_newer_than_the_copy_prevails(tmp_path: Path) -> None:
    """The operator has put the renewed secret into the credential."""
    ring = keyring(tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path / "config"))
    newest = ring.update_secret(renew).with_newest_in_force(2).with_newest_only(3)
    ring.path.write_text(newest.to_text())

    assert ring.load() == newest


def test_a_copy_of_another_mesh_is_ignored(tmp_path: Path) -> None:
    """An operator who replaces the secret does so on purpose."""
    ring = keyring(tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path / "config"))
    ring.update_secret(renew)
    other = generate_secret()
    ring.path.write_text(other.to_text())

    assert ring.load() == other


def test_a_link_to_the_secret_stays_a_link(tmp_path: Path) -> None:
    """Its target is replaced."""
    ring = keyring(tmp_path)
    real = tmp_path / "real.key"
    ring.path.rename(real)
    ring.path.symlink_to(real)

    changed = ring.update_secret(renew)

    assert ring.path.is_symlink()
    assert real.read_text() == changed.to_text()


def test_nothing_changes_if_nothing_can_be_written(tmp_path: Path) -> None:
    """A rotation that would not outlive a restart does not start."""
    ring = keyring(tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path / "config"))
    ring.copy_path.mkdir()
    (ring.copy_path / "in the way").touch()

    with pytest.raises(ConfigError):
        ring.update_secret(renew)

    assert ring.path.read_text() == SECRET.to_text()


CHANGER = """
import sys
from pathlib import Path
from octaskly.trust.secret_file import SecretFile
ring = SecretFile(Path(sys.argv[1]), Path(sys.argv[2]), {})
for letter in "abcdefghijklmnopqrst":
    ring.update_secret(lambda secret: secret.with_revoked([sys.argv[3] + letter]))
"""


def test_concurrent_changes_of_one_file_lose_nothing(tmp_path: Path) -> None:
    """All agents of one user share it, and none of them waits for the others."""
    ring = keyring(tmp_path)
    names = ["a" * 15, "b" * 15, "c" * 15]
    folders = [tmp_path / name for name in names]
    changers = []
    for folder, name in zip(folders, names, strict=True):
        folder.mkdir()
        command = [sys.executable, "-c", CHANGER, str(ring.path), str(folder), name]
        changers.append(subprocess.Popen(command, env={**os.environ}))

    codes = [changer.wait(100) for changer in changers]

    assert codes == [0, 0, 0]
    assert len(ring.load().revoked) == 60
