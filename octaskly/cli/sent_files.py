"""Files that a command sends along with its tasks, and what stderr says about them."""

from __future__ import annotations

import contextlib
import os
import posixpath
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from msgspec.structs import replace

from octaskly.cli.output.progress import NoRoomNote, TransferProgress
from octaskly.cli.output.render import data_size, note
from octaskly.client.flows import rest_calls
from octaskly.core.model.placeholders import fill_placeholders, split_placeholders
from octaskly.errors import OctasklyError
from octaskly.files.output_patterns import DeclaredOutputs, prefixes

if TYPE_CHECKING:
    from octaskly.client import Session
    from octaskly.client.flows.files import SendCallbacks, SentTree
    from octaskly.client.lending import Lender
    from octaskly.files.local_tree import LocalTree, Skipped
    from octaskly.rest.client_types import Draft

NAMES_SHOWN: Final = 3
ITEMS_CHECKED: Final = 100


class SentPaths(NamedTuple):
    """The values of `--in` and `--in-all`."""

    paths: Sequence[str] = ()
    includes_ignored: bool = False


class SentFiles:
    """The files of one command: scanned at once, and sent when a node is known.

    A command that waits for its tasks lends them, unless they are few bytes: they are
    sent when a node wants them. Use it as a context manager, which ends that.

    Args:
        client: Session with a node.
        sent: What the user named.
        items: Those of an array; they fill the placeholders in its paths.
        is_replicated: Store the files on as many nodes as the tasks, since the command
            does not wait for their end.

    Raises:
        ManifestError: a file cannot be sent.
    """

    def __init__(
        self,
        client: Session,
        sent: SentPaths,
        items: Sequence[str] = (),
        *,
        is_replicated: bool = False,
    ) -> None:
        self._client = client
        self._sent = sent
        self._is_replicated = is_replicated
        self._items = items
        self._folders: tuple[str, ...] = ()
        self._lender: Lender | None = None
        self._cancel: Callable[[], None] = lambda: None
        self._files_sent = self._bytes_sent = 0
        self._no_room = NoRoomNote()
        self._progress = TransferProgress("sending")
        self._tree = self._scan() if sent.paths else None
        if self._tree is not None:
            _warn_of_secrets(self._tree.secret_paths)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._lender is not None:
            self._lender.close()
            self._progress.clear()

    def send(self, drafts: Iterable[Draft]) -> list[Draft]:
        """Send what the node lacks, or offer it; return the tasks with their tree.

        A file that changed since the scan is scanned once more.
        """
        if self._tree is None:
            return list(drafts)
        from octaskly.files.local_tree import FileChanged  # noqa: PLC0415 - for --in

        try:
            answer = self._upload(self._tree)
        except FileChanged:
            self._tree = self._scan(is_retry=True)
            answer = self._upload(self._tree)
        field: dict[str, Any] = {"sha256": answer.sha256, "node": answer.node}
        if self._folders:
            field["folders"] = self._folders
        if answer.is_lent:
            field["lent"] = True
            self._lend(self._tree)
        else:
            note(_summary(self._tree, answer.files_sent, answer.bytes_sent))
        return [replace(draft, tree=field) for draft in drafts]

    def cancel_on_failure(self, task: str) -> None:
        """Have a task cancelled if its files cannot be lent any more."""

        def cancel() -> None:
            with contextlib.suppress(OctasklyError):  # It may have ended.
                self._client.send(rest_calls.cancel(task, force=True))

        self._cancel = cancel
        if self._lender is not None and self._lender.failure is not None:
            cancel()

    def finish(self) -> None:
        """End lending, after the tasks have ended, and say what was sent.

        Raises:
            OctasklyError: a file could not be sent; the tasks were cancelled.
        """
        if self._lender is None or self._tree is None:
            return
        self._lender.close()
        self._progress.clear()
        if self._lender.failure is not None:
            raise self._lender.failure
        note(_summary(self._tree, self._files_sent, self._bytes_sent))

    def digests(self, cwd: str | None) -> dict[str, bytes]:
        """Return the SHA-256 of files whose path for the tasks is their path here.

        Args:
            cwd: Folder in which the command runs; outputs are relative to it, so with
                one no file that was sent has the path of an output.
        """
        if self._tree is None or cwd:
            return {}
        own = set(self._own_places())
        digests = {}
        for file in self._tree.manifest.files:
            path = file.path
            if self._folders:  # One for all members, or that of an item.
                path = path.split("/", 1 if path.startswith("all/") else 2)[-1]
            if "" in own or any(place in own for place in prefixes(path)):
                digests[path] = file.sha256
        return digests

    def _own_places(self) -> Iterator[str]:
        """Yield the paths that were sent to the same place as they have here."""
        for text in self._sent.paths:
            if "=" in text:
                continue
            if not self._folders or len(split_placeholders(text)) == 1:
                place = posixpath.normpath(text)
                yield "" if place == "." else place
                continue
            for position, item in enumerate(self._items):
                yield posixpath.normpath(fill_placeholders(text, item, position))

    def _upload(self, tree: LocalTree) -> SentTree:
        from octaskly.client.flows import files  # noqa: PLC0415 - for --in only
        from octaskly.client.local_trees import contents_of  # noqa: PLC0415

        contents = contents_of(tree)
        client, callbacks = self._client, self._callbacks()
        try:
            if not self._is_replicated:
                flow = files.prepare_lending(client.requests, contents, callbacks)
                return client.run(flow)
            flow = files.upload_tree(client.requests, contents, callbacks)
            answer = client.run(flow)
        finally:
            self._progress.clear()
        client.run(files.replicate_tree(client.requests, answer))
        return answer

    def _callbacks(self) -> SendCallbacks:
        from octaskly.client.flows.files import SendCallbacks  # noqa: PLC0415

        return SendCallbacks(self._count_sent, self._progress.expect, self._no_room.say)

    def _lend(self, tree: LocalTree) -> None:
        from octaskly.client.lending import Lender  # noqa: PLC0415 - for --in only

        self._lender = Lender(
            self._client.endpoint,
            self._client.requests,
            tree,
            callbacks=self._callbacks(),
            on_failure=self._on_failure,
        )
        self._lender.__enter__()

    def _on_failure(self) -> None:
        self._cancel()  # Set when the tasks are submitted.

    def _count_sent(self, files: int, size_bytes: int) -> None:
        if size_bytes > 0:
            self._no_room.on_sent()
        self._files_sent += files
        self._bytes_sent += size_bytes
        self._progress.add(files, size_bytes)

    def _scan(self, *, is_retry: bool = False) -> LocalTree:
        from octaskly.client import local_trees  # noqa: PLC0415 - for --in only
        from octaskly.files.local_tree import ScanCallbacks  # noqa: PLC0415

        paths, includes_ignored = self._sent
        progress = TransferProgress("hashing")
        callbacks = ScanCallbacks(partial(self._on_found, progress), progress.add)
        try:
            if not self._items or not any(map(local_trees.has_placeholder, paths)):
                return local_trees.scan_local_tree(
                    paths,
                    includes_ignored=includes_ignored,
                    is_retry=is_retry,
                    callbacks=callbacks,
                )
            self._folders = local_trees.ARRAY_FOLDERS
            return local_trees.scan_array_tree(
                paths,
                self._items,
                includes_ignored=includes_ignored,
                is_retry=is_retry,
                callbacks=callbacks,
            )
        finally:
            progress.clear()

    def _on_found(self, progress: TransferProgress, sizes: Mapping[str, int]) -> None:
        """Refuse what no node has room for, before it is hashed for hours."""
        from octaskly.client.flows.files import check_quota  # noqa: PLC0415

        self._client.run(check_quota(self._client.requests, sizes))
        progress.expect(len(sizes), sum(sizes.values()))


def warn_of_local_files(
    command: str, items: Sequence[str] = (), *, outputs: Sequence[str] = ()
) -> None:
    """Print a warning if a command names files of the current folder.

    Args:
        command: Shell text of a command that sends no files.
        items: Items of an array.
        outputs: What the command makes; an earlier one may have been fetched.
    """
    named = _local_files(command, items, outputs)
    if not named:
        return
    first, sent_as = next(iter(named.items()))
    what, it = (
        (f"{first} is", "it")
        if len(named) == 1
        else (
            f"{first} and others are",
            "that",
        )
    )
    note(
        f"warning: {what} in this folder, but tasks run in the worker directory of"
        f" their node; --in {shlex.quote(sent_as)} sends {it} along, --here runs in"
        " this folder on nodes that have it"
    )


def _local_files(
    command: str, items: Sequence[str], outputs: Sequence[str]
) -> dict[str, str]:
    """Return files of the current folder that tasks name, each as a value of `--in`."""
    words = list(_words_in(command))
    if not items:
        made = DeclaredOutputs(map(posixpath.normpath, outputs))
        return {word: word for word in words if _is_named_input(word, made)}
    named: dict[str, str] = {}
    for position, item in enumerate(items[:ITEMS_CHECKED]):
        made = DeclaredOutputs(
            posixpath.normpath(fill_placeholders(out, item, position))
            for out in outputs
        )
        for word in ("{}", *words):
            filled = fill_placeholders(word, item, position)
            if _is_named_input(filled, made):
                named.setdefault(filled, word)
    return named


def _is_named_input(word: str, made: DeclaredOutputs) -> bool:
    """Return True if a word is a local file that the task does not make itself."""
    return _is_local(word) and not made.covers(posixpath.normpath(word))


def _warn_of_secrets(paths: Sequence[str]) -> None:
    if not paths:
        return
    shown = ", ".join(paths[:NAMES_SHOWN])
    more = f" and {len(paths) - NAMES_SHOWN} more" if len(paths) > NAMES_SHOWN else ""
    note(f"warning: files that look secret are sent: {shown}{more}")


def _summary(tree: LocalTree, files_sent: int, bytes_sent: int) -> str:
    """Return `· 812 files, 96 MB; sent 3 (41 kB); skipped .git`."""
    files = tree.manifest.files
    text = f"· {_counted(len(files), 'file')}, {data_size(tree.manifest.total_bytes)}"
    text += f"; sent {files_sent}"
    if files_sent:
        text += f" ({data_size(bytes_sent)})"
    parts = list(_skipped_parts(tree.skipped))
    return f"{text}; skipped {' and '.join(parts)}" if parts else text


def _skipped_parts(skipped: Skipped) -> Iterator[str]:
    if skipped.has_git:
        yield ".git"
    counts = [(skipped.folders, "folder"), (skipped.files, "file")]
    if ignored := [_counted(*count) for count in counts if count[0]]:
        yield f"{', '.join(ignored)} in .gitignore"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _words_in(command: str) -> Iterable[str]:
    """Yield the words of shell text that may name files, and the values of options."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:
        return
    for number, word in enumerate(words):
        # The first word is a program, which is found in PATH unless it has a slash.
        if number or "/" in word:
            yield from word.split("=") if word.startswith("-") else [word]


def _is_local(word: str) -> bool:
    """Return True if a word is a relative path of something that exists."""
    return (
        not word.startswith("/")
        and word.strip("./") != ""
        and "\0" not in word
        and os.path.lexists(word)
    )
