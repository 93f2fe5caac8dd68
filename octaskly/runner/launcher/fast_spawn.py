"""The start of what asks for nothing but a command, as most tasks do.

`os.posix_spawn` is given an environment, arguments and options of Python and makes of
them what C wants, anew for each task: a sixth of what a launcher takes for one. Here
the library's function is called with what was made before, and for each task only
what differs is copied to where it is looked for.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

SIGSET_BYTES: Final = 128  #: of a `sigset_t`, in glibc and musl
STRUCT_BYTES: Final = 1024  #: more than any library has in its structures for this
FLAGS: Final = 0x04 | 0x08 | 0x80  #: signals, their mask, a session; in both libraries
ACTIONS_MAX: Final = 64  #: pairs of pipes that are remembered
OWN_BYTES: Final = 1024  #: of a variable that each task has for itself, with its name
COMMAND_BYTES: Final = 128 << 10  #: more than the kernel takes as one word
WORDS_MAX: Final = 512

Buffer = ctypes.Array[ctypes.c_char]


class Plain:
    """Starts programs in one environment, but for a few variables of each.

    What it is given as bytes must have no null byte and fit, as `fits` says.

    Args:
        env: The environment.
        own: Names of the variables that each program has for itself.
        signals: What is reset to its default; none is blocked.
    """

    def __init__(
        self, env: Mapping[bytes, bytes], own: Sequence[bytes], signals: Iterable[int]
    ) -> None:
        libc = ctypes.CDLL(None)
        self._libc = libc
        address = ctypes.c_void_p
        self._spawn = libc.posix_spawn
        self._spawn.argtypes = [address, ctypes.c_char_p, *(address,) * 4]
        attributes = self._attributes = ctypes.create_string_buffer(STRUCT_BYTES)
        libc.posix_spawnattr_init(attributes)
        libc.posix_spawnattr_setsigdefault(attributes, _sigset(signals))
        libc.posix_spawnattr_setsigmask(attributes, _sigset(()))
        libc.posix_spawnattr_setflags(attributes, ctypes.c_short(FLAGS))
        self._own = [ctypes.create_string_buffer(OWN_BYTES) for _ in own]
        places = dict(zip(own, map(ctypes.addressof, self._own), strict=True))
        self._settings = [  # Kept, as only their addresses are given away.
            ctypes.create_string_buffer(name + b"=" + value)
            for name, value in env.items()
            if name not in places
        ]
        here = [*map(ctypes.addressof, self._settings), *places.values()]
        self._env = (address * (len(here) + 1))(*here)
        self._text = ctypes.create_string_buffer(COMMAND_BYTES)
        self._view = memoryview(self._text).cast("B")
        self._text_at = ctypes.addressof(self._text)
        self._sh = [ctypes.create_string_buffer(word) for word in (b"sh", b"-c")]
        shell = [*map(ctypes.addressof, self._sh), self._text_at, None]
        self._shell = (address * len(shell))(*shell)
        self._words = (address * (WORDS_MAX + 1))()
        self._actions: dict[tuple[int, int], tuple[int, Buffer]] = {}
        self._pid = ctypes.c_int()
        self._fixed = tuple(
            ctypes.addressof(part)
            for part in (self._pid, attributes, self._env, self._shell, self._words)
        )

    def put(self, settings: Iterable[bytes]) -> None:
        """Set the own variables of what is started next, each as NAME=VALUE."""
        for buffer, setting in zip(self._own, settings, strict=True):
            buffer.value = setting

    def start(
        self, program: bytes, words: Sequence[str], pipes: tuple[int, int]
    ) -> int:
        """Start a program in a session of its own and return its pid.

        Args:
            program: Its file.
            words: Its name and arguments, in ASCII.
            pipes: What it has as its output, and for its errors.

        Raises:
            OSError: it cannot be executed, or not at this moment.
        """
        text = "\0".join(words).encode()
        self._view[: len(text) + 1] = text + b"\0"
        here, place = self._words, self._text_at
        for index, word in enumerate(words):
            here[index] = place
            place += len(word) + 1
        here[len(words)] = None
        return self._start(program, self._fixed[4], pipes)

    def start_shell(self, shell: bytes, command: bytes, pipes: tuple[int, int]) -> int:
        """Do so with a shell that executes a command, which is no option of it."""
        self._text.value = command
        return self._start(shell, self._fixed[3], pipes)

    def _start(self, program: bytes, words_at: int, pipes: tuple[int, int]) -> int:
        known = self._actions.get(pipes)
        actions_at = known[0] if known is not None else self._remember(pipes)
        pid_at, attributes_at, env_at, *_ = self._fixed
        code = self._spawn(pid_at, program, actions_at, attributes_at, words_at, env_at)
        if code:
            raise OSError(code, os.strerror(code), os.fsdecode(program))
        return self._pid.value

    def _remember(self, pipes: tuple[int, int]) -> int:
        libc = self._libc
        if len(self._actions) >= ACTIONS_MAX:
            for _, actions in self._actions.values():
                libc.posix_spawn_file_actions_destroy(actions)
            self._actions.clear()
        actions = ctypes.create_string_buffer(STRUCT_BYTES)
        libc.posix_spawn_file_actions_init(actions)
        for place, fd in enumerate(pipes, 1):
            code = libc.posix_spawn_file_actions_adddup2(actions, fd, place)
            if code:
                raise OSError(code, os.strerror(code))
        actions_at = ctypes.addressof(actions)
        self._actions[pipes] = actions_at, actions
        return actions_at


def fits(command: bytes, words: Sequence[str] | None, own: Sequence[bytes]) -> bool:
    """Whether a command can be started so, and has variables for that."""
    return (
        b"\0" not in b"".join((command, *own))
        and not command.startswith((b"-", b"+"))
        and len(command) < COMMAND_BYTES
        and max(map(len, own)) < OWN_BYTES
        and (words is None or len(words) <= WORDS_MAX)
    )


def _sigset(signals: Iterable[int]) -> bytes:
    """Return a set of signals, all of which are below 32, as C has it."""
    bits = ctypes.c_ulong(sum(1 << (number - 1) for number in signals))
    return bytes(bits).ljust(SIGSET_BYTES, b"\0")
