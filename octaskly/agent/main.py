"""The entry point of an agent: scans for meshes while the program loads.

This module imports only the scan. An agent without a secret must scan first, and
loading the other modules takes much of that time, so both run at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import shlex
import sys
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

from octaskly.agent.process_hooks import (
    Banner,
    StopSignals,
    SystemdNotifier,
    disable_core_dumps,
)
from octaskly.config.agent import AgentConfig
from octaskly.config.defaults import EXIT_CONFIG
from octaskly.config.task_account import InheritedSettings
from octaskly.errors import ConfigError, StoreError
from octaskly.mesh.discovery.mdns_scan import FIRST_SCAN_S, scan_meshes
from octaskly.system.log import Logger, configure, startup_filter, use_lossy_stderr

EXIT_FAILED = 1


def run(
    config: AgentConfig,
    environ: MutableMapping[str, str] = os.environ,
    *,
    creates_mesh: bool = False,
) -> int:
    """Run a node until a stop is requested; return the exit code of the process.

    Args:
        config: The settings of the agent.
        environ: The environment.
        creates_mesh: Without a secret, create a mesh although another one is in sight.
    """
    use_lossy_stderr()
    options = config.options
    hidden = startup_filter(options.log_format, options.log_level)
    log = configure(options.log_format, options.log_level, environ, hidden)
    config = replace(
        config, inherited=InheritedSettings(os.umask(0o077), disable_core_dumps())
    )
    is_discoverable = config.paths.is_discoverable(environ)
    if not is_discoverable:
        hint = f"octaskly --state-dir {shlex.quote(str(config.paths.state))} nodes"
        log.info("commands need the state folder of this agent", hint=hint)
    try:
        with contextlib.closing(SystemdNotifier(environ)) as notifier:
            # If the folder is unreadable, a later read raises an error that names it.
            is_scan_needed = not os.path.lexists(config.paths.secret)
            if creates_mesh and not is_scan_needed:
                hint = "this machine is in a mesh already: `octaskly leave` first"
                log.warning("no new mesh", hint=hint)
            banner = Banner(config, hidden, is_discoverable=is_discoverable)
            return asyncio.run(
                _start_agent(
                    config,
                    log,
                    notifier,
                    banner,
                    environ,
                    meshes=frozenset() if creates_mesh else None,
                    is_scan_needed=is_scan_needed and not creates_mesh,
                )
            )
    except (ConfigError, StoreError) as error:
        print(f"error: {error.message}", file=sys.stderr)  # noqa: T201  the last output of a command
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)  # noqa: T201
        # systemd restarts the agent unless the configuration is wrong.
        return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED


async def _start_agent(
    config: AgentConfig,
    log: Logger,
    notifier: SystemdNotifier,
    banner: Banner,
    environ: MutableMapping[str, str],
    *,
    meshes: frozenset[str] | None,
    is_scan_needed: bool,
) -> int:
    signals = StopSignals()
    if is_scan_needed:
        interfaces = config.options.interfaces
        meshes = await scan_meshes(FIRST_SCAN_S, interfaces, meanwhile=_import_agent)
    life = await _import_agent()
    agent = life.Agent(config, log, notifier, banner, signals, environ)
    code: int = await agent.run(meshes)
    return code


async def _import_agent() -> Any:
    return await asyncio.to_thread(importlib.import_module, "octaskly.agent.lifecycle")
