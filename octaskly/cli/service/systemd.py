"""Wrapper around systemctl, loginctl and journalctl.

It runs them, parses their output and maps their failures to errors.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NoReturn

from octaskly.errors import ConfigError, MeshError, PermissionDenied

SYSTEMD_RUN_DIR = Path("/run/systemd/system")
"""Exists if and only if systemd runs, see sd_booted(3)."""
UNIT = "octaskly.service"
SOCKET_UNIT = "octaskly.socket"  #: holds the port of the API
CALL_S_MAX = 30.0


class Scope(Enum):
    """The owner of a service: one user, or the machine."""

    USER = "user"
    SYSTEM = "system"


class SystemdFailed(MeshError):
    """systemd refused, or the service did not start."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Exit code and output of a program."""

    exit_code: int
    stdout: str
    stderr: str


class Systemd:
    """The service manager of one scope."""

    def __init__(self, scope: Scope, environ: Mapping[str, str]) -> None:
        self.scope = scope
        self._environ = {**environ, "SYSTEMD_COLORS": "0", "LC_ALL": "C.UTF-8"}

    def require_available(self) -> None:
        """Check that the service manager is available.

        Raises:
            ConfigError: systemd does not run here, or has no manager for this user.
            PermissionDenied: the service of the machine needs root.
        """
        if not SYSTEMD_RUN_DIR.is_dir() or shutil.which("systemctl") is None:
            raise ConfigError(
                "this machine does not run systemd",
                hint="octaskly agent    runs a node in the foreground, under the "
                "process supervisor of this machine",
            )
        if self.scope is Scope.SYSTEM and os.geteuid() != 0:
            raise PermissionDenied(
                "only root may install a service of the machine",
                hint=f"sudo {sys.argv[0]} service install --system\n"
                "octaskly service install    a service of your own, without root",
            )
        said = self.systemctl("show", "--property=Version")
        if said.exit_code != 0:
            self._raise_no_manager(said)

    def systemctl(
        self, *words: str, timeout_s: float | None = CALL_S_MAX
    ) -> CommandResult:
        """Run systemctl for this scope.

        Starts and stops take `timeout_s` None: systemd limits them, and waits for an
        agent that may drain for up to a day.
        """
        return self._run("systemctl", f"--{self.scope.value}", *words, limit=timeout_s)

    def systemctl_or_raise(
        self, *words: str, timeout_s: float | None = CALL_S_MAX
    ) -> None:
        """Run systemctl and require success.

        Raises:
            SystemdFailed: systemctl fails.
        """
        said = self.systemctl(*words, timeout_s=timeout_s)
        if said.exit_code != 0:
            failure = SystemdFailed(
                f"systemctl {' '.join(words)} failed", hint=self.logs_command()
            )
            raise failure from _ProgramOutput(
                said.stderr or f"exit code {said.exit_code}"
            )

    def stop_units(self) -> None:
        """Stop the service and its socket; a request would start it again."""
        # The socket first, so that no request starts the service in between.
        self.systemctl("stop", SOCKET_UNIT, UNIT, timeout_s=None)

    def start_unit(self, verb: str) -> None:
        """Start or restart the service; return once its agent is ready.

        Raises:
            SystemdFailed: the service does not start.
        """
        said = self.systemctl(verb, UNIT, timeout_s=None)
        if said.exit_code != 0:
            tail = self._last_journal_lines() or said.stderr
            failure = SystemdFailed(
                "the service is installed, but its agent does not start",
                hint=f"{self.logs_command()}\noctaskly doctor",
            )
            raise failure from _ProgramOutput(tail)

    def show_unit(self) -> dict[str, str]:
        """Return the properties of the unit."""
        names = (
            "LoadState,ActiveState,SubState,Result,MainPID,StatusText,"
            "UnitFileState,FragmentPath,ActiveEnterTimestamp,ExecMainStatus"
        )
        said = self.systemctl("show", UNIT, f"--property={names}")
        pairs = (line.partition("=") for line in said.stdout.splitlines())
        return {key: value for key, equals, value in pairs if equals}

    def enable_linger(self) -> bool:
        """Enable lingering for this user; return True if it is enabled."""
        # Pass the user, because su and sudo may create no session for loginctl.
        user = getpass.getuser()
        return (
            self._run("loginctl", "enable-linger", user, limit=CALL_S_MAX).exit_code
            == 0
        )

    def run_tool(self, *words: str) -> None:
        """Run systemd-sysusers or systemd-tmpfiles.

        Raises:
            SystemdFailed: it fails.
        """
        said = self._run(*words, limit=CALL_S_MAX)
        if said.exit_code != 0:
            raise SystemdFailed(f"{' '.join(words)} failed") from _ProgramOutput(
                said.stderr
            )

    def journal_command(self, *words: str) -> list[str]:
        """Return the command that shows the service's journal."""
        return ["journalctl", f"--{self.scope.value}", "--unit", UNIT, *words]

    def logs_command(self) -> str:
        """Return the command that shows the service's journal, as users type it."""
        return f"octaskly service logs --{self.scope.value}"

    def _last_journal_lines(self) -> str:
        """Return the agent's last journal lines, if the journal is readable."""
        words = self.journal_command(
            *("--identifier=octaskly", "--lines=2", "--output=cat"),
            *("--no-pager", "--quiet"),
        )
        return self._run(*words, limit=CALL_S_MAX).stdout.strip()

    def _raise_no_manager(self, said: CommandResult) -> NoReturn:
        if self.scope is Scope.SYSTEM:
            raise ConfigError("systemd does not answer") from _ProgramOutput(
                said.stderr
            )
        hint = (
            f"sudo loginctl enable-linger {getpass.getuser()} && "
            f"export XDG_RUNTIME_DIR=/run/user/{os.getuid()}\n"
            "sudo octaskly service install --system    a service for the machine"
        )
        error = ConfigError(
            "systemd runs no manager for this user here, as after su or sudo", hint=hint
        )
        raise error from _ProgramOutput(said.stderr)

    def _run(self, *words: str, limit: float | None) -> CommandResult:
        try:
            done = subprocess.run(  # noqa: S603  the words are ours
                words,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=limit,
            )
        except FileNotFoundError:
            return CommandResult(127, "", f"{words[0]} is not installed")
        except subprocess.TimeoutExpired as error:
            return CommandResult(124, "", f"no answer within {error.timeout:.0f} s")
        return CommandResult(done.returncode, done.stdout, done.stderr.strip())


class _ProgramOutput(Exception):
    """Error output of another program, as the cause of an error."""
