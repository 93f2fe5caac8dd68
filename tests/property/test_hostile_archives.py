"""Archives of a hostile worker: a copy has checked names, and no device is made."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octaskly.files.manifest import ManifestError
from octaskly.files.tree_tar import END_BYTES, TarError
from octaskly.runner.files import output_copies
from octaskly.runner.files.output_copies import store_outputs
from octaskly.runner.output.captured_contents import MANIFEST_NAME, read_manifest

NAMES = [
    "a",
    "b",
    "..",
    ".",
    "",
    "link",
    "out",
    ".git",
    ".octaskly-fetch-t",
    "é",
    "x" * 300,
]
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map("/".join)
hostile_paths = st.one_of(
    paths, paths.map(lambda path: f"/{path}"), st.sampled_from(["/etc/x", "../x", "\0"])
)
KINDS = [
    tarfile.REGTYPE,
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
]
entries = st.tuples(
    hostile_paths, st.sampled_from(KINDS), hostile_paths, st.binary(max_size=600)
)
modes = st.sampled_from([0o644, 0o755, 0o4755, 0o2755, 0o7777])


def archive(items: list[tuple[str, bytes, str, bytes]], mode: int) -> bytes:
    """Return a tar with these entries, as any program may write it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, kind, target, data in items:
            info = tarfile.TarInfo("name")
            info.name, info.type, info.linkname, info.mode = path, kind, target, mode
            is_file = kind == tarfile.REGTYPE
            info.size = len(data) if is_file else 0
            if is_file:
                info.pax_headers = {"comment": f"sha256={sha256(data).hexdigest()}"}
            tar.addfile(info, io.BytesIO(data) if is_file else None)
    # Python pads the archive to 10 KiB, where nodes send one end only.
    blocks = buffer.getvalue().rstrip(b"\0")
    return blocks + bytes(-len(blocks) % 512 + END_BYTES)


def seen_below(top: Path) -> dict[str, int]:
    return {
        os.path.relpath(os.path.join(folder, name), top): os.lstat(  # noqa: PTH118
            os.path.join(folder, name)  # noqa: PTH118
        ).st_mode
        for folder, folders, files in os.walk(top)
        for name in (*folders, *files)
    }


@given(items=st.lists(entries, max_size=6), mode=modes, cut=st.integers(0, 3000))
@settings(max_examples=60, deadline=None)
def test_a_hostile_archive_becomes_captured_outputs_or_nothing(
    items: list[tuple[str, bytes, str, bytes]], mode: int, cut: int
) -> None:
    """A copy has files named by their digests, and a manifest that was checked."""
    data = archive(items, mode)
    data = data[: len(data) - cut] if cut < 1000 else data
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "task", "1-1-1")
        folder.mkdir(parents=True)
        try:
            store_outputs(iter([data]), folder)
        except (TarError, ManifestError):
            assert not (folder / MANIFEST_NAME).exists()

        seen = seen_below(Path(place))
        assert {path for path in seen if not path.startswith("task/1-1-1/")} == {
            "task",
            "task/1-1-1",
        }
        inside = [found for path, found in seen.items() if path.count("/") > 1]
        assert all(stat.S_ISREG(found) for found in inside)
        if (folder / MANIFEST_NAME).exists():
            _, manifest = read_manifest(folder)
            for file in manifest.files:
                content = (folder / file.sha256.hex()).read_bytes()
                assert sha256(content).digest() == file.sha256
                assert len(content) == file.size_bytes


def test_a_copy_of_too_many_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they are written, whatever the archive has announced."""
    monkeypatch.setattr(output_copies, "COPIED_BYTES_MAX", 1000)
    data = archive([("a", tarfile.REGTYPE, "", bytes(1001))], 0o644)

    with pytest.raises(TarError, match="more than 1000 bytes"):
        store_outputs(iter([data]), tmp_path)

    assert list(tmp_path.iterdir()) == []
