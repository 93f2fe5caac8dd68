"""Files from several holders: pieces, faults, wrong bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octaskly.core.model.task_options import BlobRef, InputBlob, InputTree
from octaskly.errors import OutputNotFound
from octaskly.files.manifest import (
    TreeFile,
    content_digest,
    encode_manifest,
    make_manifest,
)
from octaskly.files.pack import PACKED_BYTES_MAX
from octaskly.ports.files import (
    RETENTION_S,
    DiskFull,
    FileExceedsQuota,
    FileQuotaExceeded,
    OpenPiece,
)
from octaskly.runner.blobs import fetch as fetch_module
from octaskly.runner.blobs import pieces, uploads
from octaskly.runner.blobs.blob_fetcher import BlobFetcher, BlobSource
from octaskly.runner.blobs.blob_index import BOOT_NAME
from octaskly.runner.blobs.fetch import FilesAwaited
from octaskly.runner.blobs.holder_connection import (
    Holder,
    HolderBusy,
    HolderConnection,
    HolderRefused,
    HolderUnreachable,
)
from octaskly.runner.blobs.lenders import LENDER_WAIT_S
from tests.support.holders import FAULTS, Lan
from tests.support.set_clock import SetClock

PIECE = 4096
DATA = os.urandom(40 * PIECE + 5)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of some kilobytes have many pieces, and no test waits for a second."""
    _make_small(monkeypatch)


def _make_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(uploads, "PIECE_BYTES", PIECE)
    patch.setattr(pieces, "LOOK_AGAIN_S", 0.01)
    patch.setattr(pieces, "BUSY_S_MAX", 0.01)
    patch.setattr(fetch_module, "PAUSE_S", 0.01)


def fetch(fetcher: BlobFetcher, name: str, node: str = "a") -> list[str]:
    source = fetcher.find_blob(BlobRef(sha256=name, node=node))
    assert source is not None
    return fetcher.fetch_blob(source)


def stored(fetcher: BlobFetcher, name: str) -> bytes:
    return fetcher.blob_store.file_path(name).read_bytes()


def left_over(fetcher: BlobFetcher, name: str) -> set[str]:
    return names_in(fetcher.blob_store.file_path(name).parent)


def names_in(folder: Path) -> set[str]:
    """Return what a store has in its folder."""
    return {place.name for place in folder.iterdir()} - {BOOT_NAME}


def test_a_large_file_comes_from_up_to_four_holders(tmp_path: Path) -> None:
    """Each piece comes once, and the holders share the work."""
    lan = Lan(tmp_path, a="", b="", c="", d="", e="")
    name = lan.put(DATA)
    fetcher = lan.fetcher()

    assert fetch(fetcher, name) == []

    assert stored(fetcher, name) == DATA
    assert sum(node.sent_bytes for node in lan.nodes.values()) == len(DATA)
    assert len([node for node in lan.nodes.values() if node.asked]) <= 4
    assert left_over(fetcher, name) == {name}


def test_a_fetch_goes_on_with_another_holder_when_one_breaks(tmp_path: Path) -> None:
    """What has arrived is not sent again."""
    lan = Lan(tmp_path, a="breaks", b="")
    name = lan.put(DATA)
    fetcher = lan.fetcher()

    assert fetch(fetcher, name) == []

    assert stored(fetcher, name) == DATA
    sent = sum(node.sent_bytes for node in lan.nodes.values())
    assert len(DATA) <= sent <= len(DATA) + PIECE


@pytest.mark.parametrize("fault", ["wrong", "longer", "shorter"])
def test_wrong_bytes_are_discarded_and_their_copy_is_deleted(
    tmp_path: Path, fault: str
) -> None:
    """The holder itself reads its copy; then the next holder is asked."""
    lan = Lan(tmp_path, a=fault, b="")
    name = lan.put(DATA)
    fetcher = lan.fetcher()

    assert fetch(fetcher, name) == []

    assert stored(fetcher, name) == DATA
    assert not lan.nodes["a"].has(name)
    assert lan.nodes["b"].has(name)
    assert lan.reported == [("a", name)]
    assert left_over(fetcher, name) == {name}


def test_wrong_bytes_in_a_pack_are_discarded(tmp_path: Path) -> None:
    """Their holder loses its copy; the others are kept."""
    lan = Lan(tmp_path, a="wrong", b="")
    contents = {f"file{n}": os.urandom(100) for n in range(3)}
    manifest = encode_manifest(
        make_manifest(
            TreeFile(path, sha256(data).digest(), len(data), 0)
            for path, data in contents.items()
        )
    )
    for data in (*contents.values(), manifest):
        lan.nodes["b"].put(data)
    bad = lan.nodes["a"].put(contents["file1"])
    lan.nodes["a"].fault = ""
    good = lan.nodes["a"].put(contents["file0"])
    tree = lan.nodes["a"].put(manifest)
    fetcher = lan.fetcher()
    source = fetcher.find_blob(BlobRef(sha256=tree, node="a"))
    assert source is not None

    assert fetcher.fetch_tree(source) == []

    for data in contents.values():
        assert stored(fetcher, sha256(data).hexdigest()) == data
    assert lan.reported == [("a", bad)]
    assert lan.nodes["a"].has(good)
    assert not lan.nodes["a"].has(bad)


def test_one_line_an_hour_says_that_a_holder_sends_wrong_bytes(tmp_path: Path) -> None:
    """A failing disk spoils any number of files, and each attempt may want others."""
    lan = Lan(tmp_path, a="wrong", b="", c="wrong")
    lan.clock = clock = SetClock()
    fetcher = lan.fetcher()
    first, *others, later = (os.urandom(100) for _ in range(50))
    for data in (first, *others, later):
        lan.put(data)

    for data in (first, *others):
        assert fetch(fetcher, content_digest(data)) == []
    assert lan.reported == [("a", content_digest(first))]

    clock.now_s += 3600
    assert fetch(fetcher, content_digest(later)) == []
    assert fetch(fetcher, lan.put(DATA), node="c") == []
    assert [holder for holder, _ in lan.reported] == ["a", "a", "c"]
    assert not any(lan.nodes["a"].has(content_digest(data)) for data in others)


@pytest.mark.parametrize(
    ("unknown", "wait_s_max"), [([], 600.0), (["a"], 60.0)], ids=["known", "unknown"]
)
def test_lent_files_are_awaited_for_less_time_from_a_node_that_was_never_met(
    tmp_path: Path, unknown: list[str], wait_s_max: float
) -> None:
    """It may still be introduced; a node that was met is probably restarting."""
    lan = Lan(tmp_path, a="unreachable", b="")
    lan.unknown.update(unknown)
    tree = InputTree(sha256=content_digest(b"not here"), node="a", is_lent=True)
    source = (fetcher := lan.fetcher()).find_blob(tree)
    assert source is not None

    with pytest.raises(FilesAwaited) as awaited:
        fetcher.fetch_tree(source)

    assert awaited.value.wait_s_max == wait_s_max
    assert "which is not connected now" in str(awaited.value)
    assert lan.nodes["b"].asked  # Any node may have them.


def test_all_attempts_wait_for_an_absent_lender_at_the_same_time(
    tmp_path: Path,
) -> None:
    """Those of an array start one after the other, and would hold slots for hours."""
    lan = Lan(tmp_path, a="unreachable")
    lan.clock = clock = SetClock()
    tree = InputTree(sha256=content_digest(b"not here"), node="a", is_lent=True)
    source = (fetcher := lan.fetcher()).find_blob(tree)
    assert source is not None

    def is_awaited(after_s: float, fault: str = "unreachable") -> bool:
        clock.now_s += after_s
        lan.nodes["a"].fault = fault
        try:
            assert fetcher.fetch_tree(source)
        except FilesAwaited:
            return True
        return False

    assert is_awaited(0)
    assert is_awaited(LENDER_WAIT_S - 1)
    assert not is_awaited(2)
    assert not is_awaited(1, fault="lacks")  # It answers, and has no client.
    assert is_awaited(1)
    assert is_awaited(LENDER_WAIT_S + 1)  # It may have been there meanwhile.


def test_a_tree_of_which_a_file_was_deleted_meanwhile_lacks_room(
    tmp_path: Path,
) -> None:
    """No node has to lack it: those who need others' room wait for it."""
    lan = Lan(tmp_path, a="")
    contents = [os.urandom(PACKED_BYTES_MAX + 1) for _ in range(2)]
    manifest = encode_manifest(
        make_manifest(
            [
                TreeFile(name, sha256(data).digest(), len(data), 0, False)
                for name, data in zip("xy", contents, strict=True)
            ],
            [],
            [],
        )
    )
    for data in (*contents, manifest):
        lan.put(data)
    store = (fetcher := lan.fetcher()).blob_store
    names = {content_digest(data) for data in contents}
    gone: set[str] = set()

    def find_holders() -> list[Holder]:
        if not gone and (here := store.files_here(names)):
            gone.update(here)  # While the other one is fetched.
            (tmp_path / "own" / here[0]).unlink()
        return lan.holders_of("a")

    tree = InputTree(sha256=content_digest(manifest), node="a")
    with pytest.raises(FileQuotaExceeded, match="was deleted to free space"):
        fetcher.fetch_tree(BlobSource(tree, find_holders))


def test_only_whole_copies_of_trees_are_kept(tmp_path: Path) -> None:
    """A part of one is of no use to a task, and nothing is fetched for it."""
    lan = Lan(tmp_path)
    lan.clock = clock = SetClock()
    store = (fetcher := lan.fetcher()).blob_store
    manifests = [
        encode_manifest(
            make_manifest(
                [TreeFile("data", sha256(data).digest(), len(data), 0, False)], [], []
            )
        )
        for data in (b"here", b"not here")
    ]
    for content in (b"here", b"file", *manifests):
        store.store_blob(content_digest(content), content)
    clock.now_s += RETENTION_S - 1

    fetcher.keep_copies(
        [
            *(
                InputBlob(InputTree(sha256=content_digest(m), node="a"), is_tree=True)
                for m in manifests
            ),
            InputBlob(BlobRef(sha256=content_digest(b"file"), node="a"), is_tree=False),
            InputBlob(BlobRef(sha256=content_digest(b"gone"), node="a"), is_tree=False),
        ]
    )

    until_s = {name: until_s for name, (_, until_s) in store.list_blobs().items()}
    kept = {content_digest(data) for data in (b"here", b"file", manifests[0])}
    assert {n for n in until_s if until_s[n] == clock.now_s + RETENTION_S} == kept
    assert lan.lookups == 0


def test_a_full_store_is_no_failure_of_the_holder(tmp_path: Path) -> None:
    """There may be room later, unless the file is larger than the quota."""
    lan = Lan(tmp_path, a="", b="")
    name = lan.put(DATA)
    fetcher = lan.fetcher(quota_bytes=len(DATA) + 1)
    fetcher.blob_store.store_blob(sha256(b"..").hexdigest(), b"..")

    with pytest.raises(FileQuotaExceeded):
        fetch(fetcher, name)
    too_small = Lan(tmp_path, a="", b="").fetcher(quota_bytes=len(DATA) - 1)
    with pytest.raises(FileExceedsQuota, match=f" this node, {len(DATA) - 1} bytes"):
        fetch(too_small, name)


@pytest.mark.parametrize("is_lent", [False, True])
def test_a_full_disk_ends_the_fetch_of_a_tree(tmp_path: Path, is_lent: bool) -> None:
    """It may stay full, so another node should run the task, lent files or not."""
    lan = Lan(tmp_path, a="", b="")
    file = TreeFile("file", sha256(DATA).digest(), len(DATA), 0)
    lan.put(DATA)
    tree = lan.put(encode_manifest(make_manifest([file])))
    fetcher = lan.fetcher(reserve_bytes=1 << 60)
    source = fetcher.find_blob(InputTree(sha256=tree, node="a", is_lent=is_lent))
    assert source is not None

    with pytest.raises(DiskFull):
        fetcher.fetch_tree(source)


def test_a_peer_s_word_alone_deletes_nothing(tmp_path: Path) -> None:
    """A holder that is told that its copy is wrong reads it first."""
    lan = Lan(tmp_path, a="")
    name = lan.nodes["a"].put(DATA)

    assert lan.nodes["a"].store.verify_file(name) is True
    assert lan.nodes["a"].has(name)


def test_a_node_that_refuses_is_asked_once(tmp_path: Path) -> None:
    """It would refuse again; the reason is passed on, and others are asked."""
    lan = Lan(tmp_path, a="refuses", b="lacks")
    name = lan.put(DATA)
    fetcher = lan.fetcher()

    (why,) = fetch(fetcher, name)

    assert "a: it answered with status 400" in why
    assert lan.nodes["a"].asked == 1
    source = tree_of(lan, fetcher)
    (why,) = fetcher.fetch_tree(source)
    assert "a: it answered with status 400" in why
    assert lan.nodes["a"].asked == 3  # In a pack, then in pieces.


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, HolderRefused),
        (403, HolderUnreachable),
        (404, OutputNotFound),
        (422, HolderRefused),
        (502, HolderUnreachable),
        (503, HolderBusy),
        (429, HolderBusy),
    ],
)
def test_a_status_says_whether_to_ask_again(status: int, kind: type[Exception]) -> None:
    """A node that refuses one request serves others by the same connection."""
    with _answering(status) as connection:
        for _ in range(2):
            with pytest.raises(kind) as raised:
                HolderConnection(connection).request_piece("0" * 64, [0])
            assert type(raised.value) is kind
        expected = (
            HolderUnreachable if status in (403, 429, 502, 503) else OutputNotFound
        )
        with pytest.raises(expected):
            HolderConnection(connection).find_output_trees("task-1")


@contextmanager
def _answering(status: int) -> Iterator[HTTPConnection]:
    """Yield a connection to a server that answers each request with a status."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        connection = HTTPConnection("127.0.0.1", server.server_port)
        try:
            yield connection
        finally:
            connection.close()
            server.shutdown()


def test_holders_are_looked_up_again_while_nobody_has_the_file(tmp_path: Path) -> None:
    """Right after a change of dispatcher, no node is known for a moment."""
    lan = Lan(tmp_path, a="", b="")
    name = lan.put(DATA)
    lan.hidden = {"a", "b"}
    fetcher = lan.fetcher()

    def may_continue() -> bool:
        if lan.lookups == 3:
            lan.hidden.clear()
        return True

    source = fetcher.find_blob(BlobRef(sha256=name, node="a"))
    assert source is not None
    assert fetcher.fetch_blob(source, may_continue) == []
    assert stored(fetcher, name) == DATA


def test_a_node_that_is_fetching_a_file_sends_on_what_has_arrived(
    tmp_path: Path,
) -> None:
    """Others need not wait until it is complete; then nothing more is there to get."""
    lan = Lan(tmp_path, a="")
    name = lan.nodes["a"].put(DATA)
    store = lan.fetcher().blob_store
    upload = store.start_pieces(name, len(DATA))
    upload.begin_piece(3)
    upload.write_at(3 * PIECE, memoryview(DATA[3 * PIECE : 4 * PIECE]))
    upload.end_piece(3)

    piece = store.open_piece(name, [2, 3])
    assert piece is not None
    assert (
        os.pread(piece.fd, piece.end - piece.start, piece.start)
        == (DATA[3 * PIECE : 4 * PIECE])
    )
    os.close(piece.fd)
    assert (piece.number, piece.blob_bytes) == (3, len(DATA))
    assert store.open_piece(name, [2]) is None
    upload.close(is_wrong=True)


def fetch_in_part(lan: Lan, fetcher: BlobFetcher, name: str, pieces_max: int) -> None:
    """Fetch until so many pieces have been sent, for a task that is cancelled then."""
    before = sum(node.sent_bytes for node in lan.nodes.values())

    def may_continue() -> bool:
        sent = sum(node.sent_bytes for node in lan.nodes.values())
        return sent - before < pieces_max * PIECE

    source = tree_of(lan, fetcher)
    assert fetcher.fetch_tree(source, may_continue) != []
    assert fetcher.blob_store.missing_files([name]) == [name]


def tree_of(lan: Lan, fetcher: BlobFetcher) -> BlobSource:
    """Return a tree with the one large file."""
    file = TreeFile("file", sha256(DATA).digest(), len(DATA), 0)
    tree = lan.put(encode_manifest(make_manifest([file])))
    source = fetcher.find_blob(BlobRef(sha256=tree, node="a"))
    assert source is not None
    return source


@pytest.fixture
def no_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of a tree is large enough for pieces."""
    monkeypatch.setattr(fetch_module, "PACKED_BYTES_MAX", PIECE)


@pytest.mark.usefixtures("no_packs")
@pytest.mark.parametrize("is_restarted", [False, True])
def test_the_next_attempt_goes_on_with_the_pieces_that_have_arrived(
    tmp_path: Path, is_restarted: bool
) -> None:
    """Also after a restart of the agent: what is here is not sent again."""
    lan = Lan(tmp_path, a="")
    name = lan.put(DATA)
    fetcher = lan.fetcher()
    fetch_in_part(lan, fetcher, name, 12)
    arrived_bytes = fetcher.blob_store.used_bytes
    sent_bytes = lan.nodes["a"].sent_bytes
    if is_restarted:
        fetcher = lan.fetcher()

    assert fetcher.fetch_tree(tree_of(lan, fetcher)) == []

    assert stored(fetcher, name) == DATA
    assert arrived_bytes > 8 * PIECE
    assert lan.nodes["a"].sent_bytes - sent_bytes < len(DATA) - 8 * PIECE
    assert fetcher.blob_store.used_bytes < len(DATA) + PIECE
    assert not list((tmp_path / "own").glob("*.pieces"))


@pytest.mark.usefixtures("no_packs")
def test_wrong_pieces_of_an_earlier_attempt_are_fetched_again(tmp_path: Path) -> None:
    """Those who sent the others are not blamed for them."""
    lan = Lan(tmp_path, a="", b="")
    name = lan.put(DATA)
    lan.nodes["a"].fault = "wrong"
    lan.nodes["a"].put(DATA)
    lan.nodes["a"].fault, lan.nodes["b"].fault = "", "unreachable"
    fetcher = lan.fetcher()
    fetch_in_part(lan, fetcher, name, 12)
    lan.nodes["a"].fault, lan.nodes["b"].fault = "unreachable", ""

    assert fetcher.fetch_tree(tree_of(lan, fetcher)) == []

    assert stored(fetcher, name) == DATA
    assert lan.reported == []
    assert lan.nodes["b"].has(name)


@pytest.mark.usefixtures("no_packs")
def test_pieces_that_no_fetch_adds_to_make_room_for_others(tmp_path: Path) -> None:
    """They count in the quota, and go once the room is needed."""
    lan = Lan(tmp_path, a="")
    name = lan.put(DATA)
    fetcher = lan.fetcher(quota_bytes=len(DATA) + PIECE)
    fetch_in_part(lan, fetcher, name, 12)
    other = os.urandom(len(DATA))
    store = fetcher.blob_store
    assert store.used_bytes > 8 * PIECE

    upload = store.start_upload(sha256(other).hexdigest(), len(other))
    upload.write(other)
    upload.finish()

    assert not store.has_pieces(name)
    assert store.used_bytes < len(other) + PIECE


def test_a_holder_sends_first_what_it_has_sent_least_often(tmp_path: Path) -> None:
    """So that nodes that fetch one file can then fetch it from each other."""
    lan = Lan(tmp_path, a="")
    store = lan.nodes["a"].store
    name = lan.nodes["a"].put(DATA)
    numbers = []
    for wanted in ([0, 1, 2], [0, 1, 2], [0, 1, 2], [1], [0, 1, 2]):
        piece = store.open_piece(name, wanted)
        assert piece is not None
        os.close(piece.fd)
        numbers.append(piece.number)

    assert numbers == [0, 1, 2, 1, 0]


@pytest.mark.usefixtures("no_packs")
def test_the_first_request_for_a_file_of_known_size_is_for_any_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise all nodes that fetch a tree would first get the same one."""
    lan = Lan(tmp_path, a="")
    name = lan.put(DATA)
    fetcher = lan.fetcher()
    tree, wanted = tree_of(lan, fetcher), note_wanted(lan, monkeypatch)

    assert fetcher.fetch_tree(tree) == []

    assert stored(fetcher, name) == DATA
    assert list(wanted[0]) == list(range(41))


def note_wanted(lan: Lan, patch: pytest.MonkeyPatch) -> list[Sequence[int]]:
    """Return a list that gets the wanted pieces of each request to node a."""
    store, wanted = lan.nodes["a"].store, list[Sequence[int]]()
    open_piece = store.open_piece

    def note(sha256: str, numbers: Sequence[int]) -> OpenPiece | None:
        wanted.append(numbers)
        return open_piece(sha256, numbers)

    patch.setattr(store, "open_piece", note)
    return wanted


@given(faults=st.lists(st.sampled_from(["", *FAULTS]), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_a_fetch_ends_with_the_right_bytes_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, faults: list[str]
) -> None:
    """Whatever the holders do; with one that is sound, it succeeds."""
    with pytest.MonkeyPatch.context() as patch:
        _make_small(patch)
        names = "abcde"[: len(faults)]
        folder = tmp_path_factory.mktemp("lan")
        lan = Lan(folder, **dict(zip(names, faults, strict=True)))
        name = lan.put(DATA[: 10 * PIECE])
        fetcher = lan.fetcher()

        failed = fetch(fetcher, name)

        if {"", "breaks", "busy"} & set(faults):
            assert failed == []
        if not failed:
            assert stored(fetcher, name) == DATA[: 10 * PIECE]
        kept = names_in(folder / "own")
        assert kept == (set() if failed else {name})
        spoiled = [node for node in lan.nodes.values() if node.verified]
        assert {holder for holder, _ in lan.reported} <= {
            n
            for n, f in zip(names, faults, strict=True)
            if f in ("wrong", "longer", "shorter")
        }
        assert not any(node.has(name) for node in spoiled if node.fault == "wrong")
        fetcher.close()
