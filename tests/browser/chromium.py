"""Debian's Chromium under Playwright, with pages whose errors fail the test."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    async_playwright,
)

ARGUMENTS: Final = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--js-flags=--expose-gc",
    "--host-resolver-rules=MAP *.test 127.0.0.1",
    # The agent's refusals must show; this browser alone would not send some requests.
    "--disable-features=LocalNetworkAccessChecks",
)
ANSWER_MS: Final = 30_000.0  #: for anything on a page to appear

#: Chromium logs one for each error status; tests of error answers check
#: the page's own reaction instead.
UNANSWERED: Final = re.compile(r"Failed to load resource: .*")

#: A dispatcher that stood still answers so until a follower confirms it. The page asks
#: again, and tests check what it shows then.
NOT_YET: Final = re.compile(r"Failed to load resource: .* status of 503 .*")

WATCH = """
addEventListener("securitypolicyviolation", (event) => console.error(
    `violates ${event.effectiveDirective}: ${event.blockedURI} ${event.sample}`));
addEventListener("unhandledrejection", (event) => console.error(
    `unhandled rejection: ${event.reason}`));
"""


def missing() -> str | None:
    """Return the reason why no browser can be started here, or None."""
    return None if _program() else "chromium is missing: apt install it"


@contextlib.asynccontextmanager
async def started(home: Path | None = None, *more: str) -> AsyncIterator[Browser]:
    """Run one browser for the length of a block; `home` may add authorities."""
    environ: dict[str, str | float | bool] = {**os.environ}
    if home is not None:
        environ["HOME"] = str(home)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=_program(),
            args=(*ARGUMENTS, *more),
            chromium_sandbox=False,
            env=environ,
        )
        try:
            yield browser
        finally:
            await browser.close()


def _program() -> str | None:
    """Return the browser: without windows if possible, which takes half the CPU."""
    return shutil.which("chromium-headless-shell") or shutil.which("chromium")


def trust(home: Path, authority: Path) -> None:
    """Let browsers of a home folder trust an authority, as users do by hand."""
    folder = home / ".pki" / "nssdb"
    folder.mkdir(parents=True)
    certutil = ("certutil", "-d", f"sql:{folder}")
    subprocess.run((*certutil, "-N", "--empty-password"), check=True)
    subprocess.run(
        (*certutil, "-A", "-t", "C,,", "-n", "mesh", "-i", authority), check=True
    )


class Visitor:
    """One context of a browser, with all errors of its pages."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.faults: list[str] = []
        self._allowed = [NOT_YET]
        context.set_default_timeout(ANSWER_MS)
        context.on("console", self._hear)
        context.on("weberror", lambda error: self.faults.append(str(error.error.stack)))
        context.on("dialog", self._dismiss)

    def allow(self, pattern: re.Pattern[str] = UNANSWERED) -> None:
        """Ignore errors that match a pattern, which the test causes."""
        self._allowed.append(pattern)

    async def page(self) -> Page:
        """Return a fresh page."""
        return await self.context.new_page()

    def check(self) -> None:
        """Fail if a page logged an error, broke its policy, or ignored a rejection."""
        faults = [
            fault
            for fault in self.faults
            if not any(allowed.fullmatch(fault) for allowed in self._allowed)
        ]
        assert faults == [], faults

    async def _dismiss(self, dialog: Dialog) -> None:
        self.faults.append(f"a dialog opened: {dialog.message}")
        await dialog.dismiss()

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.faults.append(message.text)


@contextlib.asynccontextmanager
async def visitor(browser: Browser, **options: Any) -> AsyncIterator[Visitor]:
    """Open a context for a block; at its end no page may have errors."""
    context = await browser.new_context(**options)
    try:
        await context.add_init_script(WATCH)
        one = Visitor(context)
        yield one
        one.check()
    finally:
        await context.close()
