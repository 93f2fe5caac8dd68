"""How attempts are started, each in the surroundings that it asked for.

Used by the launcher alone, which is single-threaded: the working directory of the
launcher is that of the task it is starting.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from octaskly.runner.launch_protocol import NOT_STARTED, RESET_SIGNALS, RESOURCE_ERRORS
from octaskly.runner.launcher.child import (
    AttemptProcess,
    PipeReader,
    StartOrder,
    shell_argv,
)
from octaskly.runner.launcher.slots import Slot
from octaskly.runner.processes.limits import READY_FD

SHELL = "/bin/sh"
ATTEMPT_VARIABLES = (b"OCTASKLY_TASK_ID", b"OCTASKLY_ATTEMPT", b"OCTASKLY_MARK")
SLOT_VARIABLE = b"OCTASKLY_SLOT"
NOT_FOUND = 127  #: exit code where there is no program, or no shell to look for it


def find_program(word: str, path: str) -> str | None:
    """Return the file that a shell would execute, or None when it must decide.

    It decides whatever is not simple: relative folders in PATH, a first match that
    cannot be executed, and of course a program that is not there.
    """
    if "/" in word:
        return word
    if "%" in path:  # dash gives `%` in PATH a meaning.
        return None
    for folder in path.split(":"):
        if not folder.startswith("/"):
            return None
        file = f"{folder}/{word}"
        # What is not there is told by `access` without an exception.
        if os.access(file, os.F_OK) and os.path.isfile(file):  # noqa: PTH113 - fast
            return file if os.access(file, os.X_OK) else None
    return None


def _execute(
    order: StartOrder,
    before: str,
    env: dict[bytes, bytes],
    files: Sequence[tuple[int, int]],
) -> int:
    """Start a command in a session of its own and return its pid; raise OSError.

    Args:
        order: What to run.
        before: Shell text that prepares and then executes it as `sh "$@"`; or nothing.
        env: The whole environment.
        files: Descriptors of ours with what they are for the command.
    """
    actions = [(os.POSIX_SPAWN_DUP2, fd, place) for fd, place in files]
    if order.argv is not None and not before:
        path = os.fsdecode(env.get(b"PATH", b""))
        program = find_program(order.argv[0], path)
        if program is not None:
            try:
                return _spawn(program, order.argv, env, actions)
            except OSError as error:
                if error.errno in RESOURCE_ERRORS:
                    raise
                # The shell says it as people expect it.
    words = shell_argv(order.command)
    if before:
        words = [b"sh", b"-c", before.encode(), *words]
    return _spawn(SHELL, words, env, actions)


def _spawn(
    program: str,
    words: list[str] | list[bytes],
    env: dict[bytes, bytes],
    actions: Sequence[tuple[int, int, int]],
) -> int:
    return os.posix_spawn(
        program,
        words,
        env,
        file_actions=actions,
        setsid=True,
        setsigdef=RESET_SIGNALS,
        setsigmask=(),
    )


class SpawnRefused(Exception):
    """An attempt could not be started.

    Args:
        detail: What is in the way.
        code: Exit code, as a shell would give it.
        is_final: Whether it would fail again, so it has failed.
    """

    def __init__(
        self, detail: str, *, code: int = NOT_STARTED, is_final: bool = True
    ) -> None:
        # It travels and is kept as UTF-8, which the name of a file need not be.
        super().__init__(detail.encode("utf-8", "backslashreplace").decode())
        self.code = code
        self.is_final = is_final


def build_refused_message(
    order: StartOrder, now_ms: int, refusal: SpawnRefused
) -> list[object]:
    """Return the message that ends an attempt that could not be executed."""
    head = ["end", order.key, refusal.code, "", now_ms, now_ms, 0, None, None]
    return [*head, b"", b"", 0, 0, str(refusal)]


class SpawnContext:
    """What all attempts of a launcher have in common when they start.

    Args:
        workdir: Where they run unless they ask for another folder; it may come and go.
        node: Name of this node, for their environment.
        output_bytes_max: Bytes to keep of each stream.
        has_ctype: Whether the agent gave `LC_CTYPE`. Python adds it by itself where
            no locale is set, and a task must not see that.
    """

    def __init__(
        self, *, workdir: str, node: str, output_bytes_max: int, has_ctype: bool
    ) -> None:
        self._workdir = workdir
        self._node = node
        self._output_bytes_max = output_bytes_max
        self._env = dict(os.environb)
        if not has_ctype:
            self._env.pop(b"LC_CTYPE", None)
        self._env[b"OCTASKLY_NODE"] = node.encode()
        # What a shell would export; a program started directly must see the same.
        self._env[b"PWD"] = os.fsencode(os.path.realpath(workdir))

    def spawn_attempt(
        self, order: StartOrder, slot: Slot, *, begin_s: float, begin_ms: int
    ) -> AttemptProcess:
        """Start an attempt.

        Args:
            order: What to run.
            slot: What it has been given.
            begin_s: Now, on the monotonic clock.
            begin_ms: Now, on the wall clock.

        Raises:
            Refused: it cannot be executed, or not at this moment.
        """
        self._change_folder(order.options)
        try:
            pid, out_fd, err_fd = self._spawn_captured(order, slot)
        except (OSError, ValueError) as error:
            raise SpawnRefused(
                f"cannot execute on {self._node}: {error}",
                code=NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_STARTED,
                is_final=getattr(error, "errno", None) not in RESOURCE_ERRORS,
            ) from error
        finally:
            if order.options:
                os.chdir("/")  # A disk whose task has ended can be unmounted.
        sinks = (
            PipeReader(out_fd, self._output_bytes_max, 0),
            PipeReader(err_fd, self._output_bytes_max, 1),
        )
        return AttemptProcess(order, slot, pid, sinks, (begin_s, begin_ms))

    def _spawn_captured(self, order: StartOrder, slot: Slot) -> tuple[int, int, int]:
        """Return the pid and the read ends of both pipes."""
        out_r, out_w = os.pipe2(os.O_CLOEXEC)
        try:
            err_r, err_w = os.pipe2(os.O_CLOEXEC)
        except OSError:
            os.close(out_r)
            os.close(out_w)
            raise
        try:
            pid = self._start(order, slot, out_w, err_w)
        except (OSError, ValueError):
            os.close(out_r)
            os.close(err_r)
            raise
        finally:
            os.close(out_w)
            os.close(err_w)
        return pid, out_r, err_r

    def _start(self, order: StartOrder, slot: Slot, out_w: int, err_w: int) -> int:
        asked, env = order.options, self._env
        env |= zip(
            ATTEMPT_VARIABLES, (order.task, order.attempt, order.marker), strict=True
        )
        env[SLOT_VARIABLE] = b"%d" % slot.index
        files, ours = [(out_w, 1), (err_w, 2)], []
        if asked:
            # Behind what marks its processes, which is looked for at the beginning.
            env = env | asked.get("env", {})
            env[b"PWD"] = os.getcwdb()  # noqa: PTH109 - as bytes
        try:
            if "stdin" in asked:
                ours.append(open_as_stdin(asked["stdin"]))
                files.append((ours[-1], 0))
            fence = slot.limit_enforcer
            before = "" if fence is None else fence.shell_preamble()
            if fence is None or fence.group is None:
                return _execute(order, before, env, files)
            # It must not enter by itself: by a descriptor with which it could, a
            # library that its environment names could put any process there.
            ours += os.pipe2(os.O_CLOEXEC)
            pid = _execute(order, before, env, [*files, (ours[-2], READY_FD)])
            if fence.group.move_process_in(pid):
                os.write(ours[-1], b"\n")
            return pid
        finally:
            for fd in ours:
                os.close(fd)

    def _change_folder(self, options: Mapping[str, Any]) -> None:
        folder, cwd = self._workdir, ""
        if options:
            folder = os.fsdecode(options.get("folder", folder))
            cwd = os.fsdecode(options.get("cwd", b""))
            folder = os.path.join(folder, cwd) if cwd else folder  # noqa: PTH118 - fast
        try:
            os.chdir(folder)
        except (OSError, ValueError) as error:
            what = f"cwd {cwd}" if cwd else f"working directory {folder}"
            # Of NUL alone Python itself says why, each version in its own words.
            reason = getattr(error, "strerror", "it contains a NUL character")
            why = f"cannot be entered ({reason})"
            if isinstance(error, FileNotFoundError):
                why = "does not exist"
            elif isinstance(error, NotADirectoryError):
                why = "is not a folder"
            raise SpawnRefused(f"{what} {why} on {self._node}") from error


def open_as_stdin(data: bytes) -> int:
    """Return a descriptor that gives these bytes; nobody waits for a reader."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)
