"""Spawning attempts with their working directory, environment, stdin and limits.

Only for a single-threaded process: the launcher changes its own working directory to
that of the task that it starts.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from octaskly.runner.launch_protocol import (
    NOT_STARTED,
    ORDERS_WAITING_MAX,
    RESET_SIGNALS,
    RESOURCE_ERRORS,
)
from octaskly.runner.launcher.attempt_process import (
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
NOT_FOUND = 127  #: exit code if the program or the shell does not exist


def find_program(word: str, path: str) -> str | None:
    """Return the file that a shell would execute, or None to let the shell decide.

    The shell decides all special cases: relative folders in PATH, a first match that
    is not executable, and a program that does not exist.
    """
    if "/" in word:
        return word
    if "%" in path:  # dash gives `%` in PATH a meaning.
        return None
    for folder in path.split(":"):
        if not folder.startswith("/"):
            return None
        file = f"{folder}/{word}"
        # `access` reports a missing file without an exception.
        if os.access(file, os.F_OK) and os.path.isfile(file):  # noqa: PTH113 - fast
            return file if os.access(file, os.X_OK) else None
    return None


def _execute(
    order: StartOrder,
    preamble: str,
    env: dict[bytes, bytes],
    files: Sequence[tuple[int, int]],
) -> int:
    """Start a command in its own session and return its pid; raise OSError.

    Args:
        order: What to run.
        preamble: Shell script that runs first and then executes `sh "$@"`; or empty.
        env: The whole environment.
        files: Pairs of our descriptor and its number in the command.
    """
    actions = [(os.POSIX_SPAWN_DUP2, fd, place) for fd, place in files]
    if order.argv is not None and not preamble:
        path = os.fsdecode(env.get(b"PATH", b""))
        program = find_program(order.argv[0], path)
        if program is not None:
            try:
                return _spawn(program, order.argv, env, actions)
            except OSError as error:
                if error.errno in RESOURCE_ERRORS:
                    raise
                # Fall through: the shell prints the error that people expect.
    words = shell_argv(order.command)
    if preamble:
        words = [b"sh", b"-c", preamble.encode(), *words]
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
        detail: The reason; if it is not final, the resource that the machine lacks.
        code: Exit code that a shell would return.
        is_final: True if another attempt would fail too, so the task has failed.
    """

    def __init__(
        self, detail: str, *, code: int = NOT_STARTED, is_final: bool = True
    ) -> None:
        # The log stores UTF-8, but a file name may be any bytes.
        super().__init__(detail.encode("utf-8", "backslashreplace").decode())
        self.code = code
        self.is_final = is_final


def build_refused_message(
    order: StartOrder, now_ms: int, refusal: SpawnRefused
) -> list[object]:
    """Return the `end` message of an attempt that could not be executed."""
    head = ["end", order.key, refusal.code, "", now_ms, now_ms, 0, None, None]
    return [*head, b"", b"", 0, 0, str(refusal)]


FDS_PER_ATTEMPT = 7  #: two pipes, an output file, and four of a cgroup
FDS_RESERVED = 32  #: for reading /proc, and for orders


class DescriptorLimits(NamedTuple):
    """Soft limits of open files."""

    of_tasks: int
    own: int  #: of the launcher; may be higher
    hard: int

    @classmethod
    def for_slots(cls, slots: int) -> DescriptorLimits:
        """Return the limits of a launcher whose slots may need more than is usual."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = FDS_PER_ATTEMPT * (slots + ORDERS_WAITING_MAX) + 2 * FDS_RESERVED
        return cls(soft, max(soft, min(needed, hard)), hard)

    def raise_own(self) -> None:
        """Raise the limit of this process."""
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.own, self.hard))

    def lower_for(self, pid: int) -> None:
        """Lower the limit that a process has just inherited.

        It cannot be lowered before: `posix_spawn` refuses descriptors above the limit.
        """
        if self.own != self.of_tasks:
            with suppress(OSError):  # It has ended, or its program has another user.
                resource.prlimit(
                    pid, resource.RLIMIT_NOFILE, (self.of_tasks, self.hard)
                )


class SpawnContext:
    """Spawns the attempts of a launcher; holds their common settings.

    Args:
        limits: Limits of open files.
        workdir: Default working directory; it may be missing at times.
        node: Name of this node, for the environment of tasks.
        output_bytes_max: Bytes of each stream to keep.
        has_ctype: True if the agent's environment has `LC_CTYPE`. Otherwise the
            launcher's Python may have set it, and tasks must not see it.
    """

    def __init__(
        self,
        *,
        limits: DescriptorLimits,
        workdir: str,
        node: str,
        output_bytes_max: int,
        has_ctype: bool,
    ) -> None:
        self._limits = limits
        self._workdir = workdir
        self._node = node
        self._output_bytes_max = output_bytes_max
        self._env = dict(os.environb)
        if not has_ctype:
            self._env.pop(b"LC_CTYPE", None)
        self._env[b"OCTASKLY_NODE"] = node.encode()
        # A shell sets PWD; a program that is started without a shell needs it too.
        self._env[b"PWD"] = os.fsencode(os.path.realpath(workdir))

    def spawn_attempt(
        self, order: StartOrder, slot: Slot, *, begin_s: float, begin_ms: int
    ) -> AttemptProcess:
        """Start an attempt.

        Args:
            order: What to run.
            slot: The slot that it holds.
            begin_s: Now, on the monotonic clock.
            begin_ms: Now, on the wall clock.

        Raises:
            SpawnRefused: it cannot be executed, or not now.
        """
        try:
            self._change_folder(order.options)
            pid, out_fd, err_fd = self._spawn_captured(order, slot)
            self._limits.lower_for(pid)
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None)
            if number in RESOURCE_ERRORS:
                raise SpawnRefused(os.strerror(number), is_final=False) from error
            raise SpawnRefused(
                f"cannot execute on {self._node}: {error}",
                code=NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_STARTED,
            ) from error
        finally:
            order.close_stdin()
            if order.options:
                os.chdir("/")  # A busy working directory could not be unmounted.
        readers = (
            PipeReader(out_fd, self._output_bytes_max, 0),
            PipeReader(err_fd, self._output_bytes_max, 1),
        )
        return AttemptProcess(order, slot, pid, readers, (begin_s, begin_ms))

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
        if err_w >= self._limits.own - FDS_RESERVED:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        options, env = order.options, self._env
        env |= zip(
            ATTEMPT_VARIABLES, (order.task, order.attempt, order.marker), strict=True
        )
        env[SLOT_VARIABLE] = b"%d" % slot.index
        files, ours = [(out_w, 1), (err_w, 2)], []
        if options:
            # Our markers come first, because an environment is read up to a bound.
            env = env | options.get("env", {})
            env[b"PWD"] = os.getcwdb()  # noqa: PTH109 - as bytes
        try:
            if order.stdin_fd is not None:
                files.append((order.stdin_fd, 0))
            elif "stdin" in options:
                ours.append(open_as_stdin(options["stdin"]))
                files.append((ours[-1], 0))
            enforcer = slot.limit_enforcer
            preamble = "" if enforcer is None else enforcer.shell_preamble()
            if enforcer is None or enforcer.group is None:
                return _execute(order, preamble, env, files)
            # The launcher moves the process into the cgroup. With a descriptor to do so
            # itself, a library from the task's LD_PRELOAD could move any process there.
            ours += os.pipe2(os.O_CLOEXEC)
            pid = _execute(order, preamble, env, [*files, (ours[-2], READY_FD)])
            if enforcer.group.move_process_in(pid):
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
            # A NUL raises ValueError, whose text differs between Python versions.
            reason = getattr(error, "strerror", "it contains a NUL character")
            why = f"cannot be entered ({reason})"
            if isinstance(error, FileNotFoundError):
                why = "does not exist"
            elif isinstance(error, NotADirectoryError):
                why = "is not a folder"
            raise SpawnRefused(f"{what} {why} on {self._node}") from error


def open_as_stdin(data: bytes) -> int:
    """Return a descriptor that reads these bytes, from a file in memory."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)
