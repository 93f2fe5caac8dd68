"""Texts for people about how an attempt or task ended.

The module is by itself so that commands which show tasks need not import the rest of
the core. That would take a tenth of the time of `octaskly ls`.
"""

from __future__ import annotations

from typing import Final

SHELL_EXIT_CODES: Final = {126: " (cannot be executed)", 127: " (command not found)"}
"""Why a shell ends with these exit codes. Source: POSIX.1-2024, XCU 2.8.2."""


def exit_code_text(exit_code: int) -> str:
    """Return an exit code for people, with its meaning if it is the shell's own."""
    return f"exit code {exit_code}{SHELL_EXIT_CODES.get(exit_code, '')}"


def end_text(
    reason: str | None, exit_code: int | None, signal: int | None, detail: str | None
) -> str:
    """Return for people how an attempt or task ended without success.

    The detail of a process that ended by itself may concern something else, such as an
    output that was not kept, so it never replaces the exit code or the signal.

    Args:
        reason: A value of `EndReason`.
        exit_code: Of the process, if it ended by itself.
        signal: That ended the process.
        detail: Explains the end.
    """
    if reason == "exit" and exit_code is not None:
        how = exit_code_text(exit_code)
    elif reason == "signal" and signal is not None:
        how = f"signal {signal}"
    elif reason == "timeout":
        how = "timeout"
    else:
        return detail or (f"signal {signal}" if signal else reason or "not known")
    return f"{how}: {detail}" if detail else how
