"""Files that a command sends along with its tasks, and what stderr says about them."""

from __future__ import annotations

import itertools
import os
import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from octaskly.cli.output.progress import NoRoomNote, TransferProgress
from octaskly.cli.output.render import data_size, note
from octaskly.core.model.placeholders import fill_placeholders
from octaskly.errors import OctasklyError
from octaskly.files.output_patterns import DeclaredOutputs

if TYPE_CHECKING:
    from octaskly.client import Session
    from octaskly.client.flows.files import SendCallbacks, SentTree
    from octaskly.client.flows.task_fields import InputPath
    from octaskly.client.lending import Lender
    from octaskly.client.local_files import LocalFiles
    from octaskly.files.local_tree import LocalTree, Skipped
    from octaskly.rest.client_types import Draft, Task

NAMES_SHOWN: Final = 3
ITEMS_CHECKED: Final = 100
_NODE_FILES: Final = ("package.json",)
_GRADLE_FILES: Final = ("build.gradle", "build.gradle.kts")
PROJECT_FILES: Final[Mapping[str, Sequence[str]]] = {
    "make": ("Makefile", "makefile", "GNUmakefile"),
    "ninja": ("build.ninja",),
    "just": ("justfile", "Justfile"),
    "cmake": ("CMakeLists.txt",),
    "meson": ("meson.build",),
    "cargo": ("Cargo.toml",),
    "go": ("go.mod",),
    "mvn": ("pom.xml",),
    "gradle": _GRADLE_FILES,
    "npm": _NODE_FILES,
    "pnpm": _NODE_FILES,
    "yarn": _NODE_FILES,
    "pytest": ("pyproject.toml", "setup.cfg", "pytest.ini"),
    "tox": ("tox.ini", "pyproject.toml"),
    "snakemake": ("Snakefile", "workflow/Snakefile"),
}
"""Files that programs read in their folder although no argument names them."""

_VARIABLE: Final = re.compile(r"[A-Za-z_]\w*=")


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
        self._lender: Lender | None = None
        self._earlier = ""  #: the task whose files are sent again
        self._files_sent = self._bytes_sent = 0
        self._no_room = NoRoomNote()
        self._hashing = TransferProgress("hashing")
        self._sending = TransferProgress("sending")
        self._files: LocalFiles | None = None
        self._tree: LocalTree | None = None
        if sent.paths:
            self._files = self._make_files(sent, items, is_replicated=is_replicated)
            self._tree = self._scan(self._files)
            _warn_of_secrets(self._tree.secret_paths)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._lender is not None:
            self._lender.close()
            self._sending.clear()

    def send(self, drafts: Iterable[Draft]) -> list[Draft]:
        """Send what the node lacks, or offer it; return the tasks with their tree."""
        if self._files is None:
            return list(drafts)
        client, callbacks = self._client, self._callbacks()
        try:
            flow = self._files.attach(client.requests, drafts, callbacks)
            sent = client.run(flow)
        finally:
            self._hashing.clear()  # Of a file that has changed.
            self._sending.clear()
        self._begin(sent.tree, sent.answer, callbacks)
        return sent.drafts

    def send_again(self, earlier: Task, *, may_lend: bool) -> None:
        """Send or offer the files of an earlier task, before it is retried.

        Args:
            earlier: The task.
            may_lend: The command waits for the end of the retry.
        """
        tree = earlier.tree
        if tree is None:
            return
        from octaskly.client.flows.files import share_again  # noqa: PLC0415 - rare
        from octaskly.client.local_files import (  # noqa: PLC0415 - as above
            contents_of,
            find_sent_tree,
        )

        found = find_sent_tree(tree.sha256)
        if found is None:
            note(
                f"· this machine does not know the files of {earlier.id}; nodes use"
                " those that they still have"
            )
            return
        if changed := found.changed_paths():
            verb = "has" if len(changed) == 1 else "have"
            note(
                f"· {_shown(changed)} {verb} changed since then; the retry uses the"
                " earlier content (a new run uses the present one)"
            )
        client, callbacks = self._client, self._callbacks()
        self._earlier = earlier.id
        flow = share_again(
            client.requests,
            contents_of(found),
            callbacks,
            lent_to=tree.node if tree.lent and may_lend else None,
        )
        try:
            answer = client.run(flow)
        except OctasklyError as error:
            raise _explain(error, earlier.id) from None
        finally:
            self._sending.clear()
        self._begin(found, answer, callbacks)

    def _begin(
        self, tree: LocalTree, answer: SentTree, callbacks: SendCallbacks
    ) -> None:
        """Begin to lend what is lent; say what was sent of anything else."""
        self._tree = tree
        if not answer.is_lent:
            note(_summary(tree, answer.files_sent, answer.bytes_sent))
            return
        from octaskly.client.lending import Lender  # noqa: PLC0415 - for --in only

        client = self._client
        self._lender = Lender(client.endpoint, client.requests, tree, callbacks)
        self._lender.open()

    def cancel_on_failure(self, task: str) -> None:
        """Have a task cancelled if its files cannot be lent any more."""
        if self._lender is not None:
            self._lender.cancel_on_failure(task)

    def finish(self) -> None:
        """End lending, after the tasks have ended, and say what was sent.

        Raises:
            OctasklyError: a file could not be sent; the tasks were cancelled.
        """
        if self._lender is None or self._tree is None:
            return
        self._lender.close()
        self._sending.clear()
        try:
            self._lender.finish()
        except OctasklyError as error:
            raise _explain(error, self._earlier) from None
        note(_summary(self._tree, self._files_sent, self._bytes_sent))

    def digests(self, cwd: str | None) -> Mapping[str, bytes]:
        """Return the SHA-256 of files whose path for the tasks is their path here.

        Args:
            cwd: Folder in which the command runs; outputs are relative to it, so with
                one no file that was sent has the path of an output.
        """
        digests = None if cwd or self._files is None else self._files.digests()
        return {} if digests is None else digests.by_path

    def _make_files(
        self, sent: SentPaths, items: Sequence[str], *, is_replicated: bool
    ) -> LocalFiles:
        from octaskly.client.local_files import LocalFiles  # noqa: PLC0415 - for --in
        from octaskly.files.local_tree import ScanCallbacks  # noqa: PLC0415

        return LocalFiles(
            [_input_path(text, is_array=bool(items)) for text in sent.paths],
            {"items": items} if items else None,
            includes_ignored=sent.includes_ignored,
            sharing="replicate" if is_replicated else "lend",
            callbacks=ScanCallbacks(self._on_found, self._hashing.add),
        )

    def _scan(self, files: LocalFiles) -> LocalTree:
        try:
            return files.scan()
        finally:
            self._hashing.clear()

    def _on_found(self, sizes: Mapping[str, int]) -> None:
        """Refuse what no node has room for, before it is hashed for hours."""
        from octaskly.client.flows.files import check_quota  # noqa: PLC0415

        self._client.run(check_quota(self._client.requests, sizes))
        self._hashing.expect(len(sizes), sum(sizes.values()))

    def _callbacks(self) -> SendCallbacks:
        from octaskly.client.flows.files import SendCallbacks  # noqa: PLC0415

        return SendCallbacks(self._count_sent, self._sending.expect, self._no_room.say)

    def _count_sent(self, files: int, size_bytes: int) -> None:
        if files:  # A refused upload counts its bytes, and then takes them back.
            self._no_room.on_sent()
        self._files_sent += files
        self._bytes_sent += size_bytes
        self._sending.add(files, size_bytes)


def _explain(error: OctasklyError, earlier: str) -> OctasklyError:
    """Return the error of files that were to be sent again, for an earlier task."""
    from octaskly.files.local_tree import FileChanged  # noqa: PLC0415 - rare
    from octaskly.files.manifest import ManifestError  # noqa: PLC0415 - as above

    if not (earlier and isinstance(error, ManifestError)):
        return error
    text = error.message
    if isinstance(error, FileChanged):
        text = f"{error.path!r} has changed"
    return ManifestError(
        f"{text}; it was sent with {earlier}",
        hint="restore the file and retry, or start anew with --in",
    )


def _input_path(text: str, *, is_array: bool) -> InputPath:
    """Return the meaning of `PATH[=DEST]`; with placeholders, the last `=` counts."""
    from octaskly.client.flows.task_fields import (  # noqa: PLC0415 - for --in only
        InputPath,
    )
    from octaskly.files.local_tree import split_at_place  # noqa: PLC0415 - as above

    if is_array and InputPath(text).is_template:
        path, equals, place = text.rpartition("=") if "=" in text else (text, "", "")
        return InputPath(path, place if equals else None)
    return InputPath(*split_at_place(text, str(Path.cwd())))


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
    program, words = _split_command(command)
    project = (f for f in PROJECT_FILES.get(program, ()) if os.path.lexists(f))
    named = dict.fromkeys(itertools.islice(project, 1), ".")
    if not items:
        made = DeclaredOutputs(map(posixpath.normpath, outputs))
        return named | {word: word for word in words if _is_named_input(word, made)}
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
    if paths:
        note(f"warning: files that look like secrets are sent: {_shown(paths)}")


def _shown(paths: Sequence[str]) -> str:
    """Return the first few of some paths, and how many more there are."""
    more = f" and {len(paths) - NAMES_SHOWN} more" if len(paths) > NAMES_SHOWN else ""
    return ", ".join(paths[:NAMES_SHOWN]) + more


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


def _split_command(command: str) -> tuple[str, Sequence[str]]:
    """Return the program of shell text, and the words that may name files.

    Variables before the program are left out. Of an option, the words are its name and
    its value.
    """
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(itertools.dropwhile(_VARIABLE.match, lexer))
    except ValueError:
        return "", ()
    program = words[0] if words else ""
    # A program is found in PATH unless it has a slash.
    found = [program] if "/" in program else []
    for word in words[1:]:
        found += word.split("=") if word.startswith("-") else [word]
    return program, found


def _is_local(word: str) -> bool:
    """Return True if a word is a relative path of something that exists."""
    return (
        not word.startswith("/")
        and word.strip("./") != ""
        and "\0" not in word
        and os.path.lexists(word)
    )
