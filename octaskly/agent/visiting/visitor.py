"""The process of a visitor: joins by an invite, runs tasks, and leaves nothing behind.

It has the transport, the worker and the runner of a member. It has no log, no API, no
discovery and no mesh secret, and it opens no port.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from octaskly.agent.core_loop import StepLoop
from octaskly.agent.gateway.mesh_view import lan_url
from octaskly.agent.node_setup import make_folders, node_info
from octaskly.agent.process_hooks import (
    StopSignals,
    build_unraisable_hook,
    disable_core_dumps,
)
from octaskly.agent.runner_setup import build_file_stores, build_runner
from octaskly.agent.visiting.folder import VisitorFolder
from octaskly.agent.visiting.outputs import LiveOutput, SentOutputs
from octaskly.config.agent import AgentConfig
from octaskly.config.paths import Paths
from octaskly.config.task_account import InheritedSettings, resolve_account
from octaskly.core import effects as ef
from octaskly.core import events as ev
from octaskly.core.model.ids import Address
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.settings import Settings
from octaskly.core.node.visitor_node import LeaveReason, Visit, VisitorNode
from octaskly.joining.visitor_invite import VisitorCode, join_as_visitor
from octaskly.mesh.links.transport import Transport
from octaskly.runner.blobs.blob_fetcher import BlobFetcher, BlobSource
from octaskly.runner.blobs.holder_connection import Holder
from octaskly.runner.blobs.lenders import Lenders
from octaskly.runner.files.capture import OutputReader
from octaskly.runner.processes.proc_tree import become_subreaper
from octaskly.system.clock import SystemClock
from octaskly.system.log import Logger, configure, log_line, use_lossy_stderr
from octaskly.system.machine_stats import LoadSampler
from octaskly.trust import NodeKey
from octaskly.trust.tls import VisitGrant, VisitorTls

RETURN_S_MAX: Final = 30.0  #: so long before its end, a visitor gives its tasks back
RETURN_PART: Final = 4  #: at most this part of a short visit
SAMPLE_S: Final = 2.0  #: between two samples of load and launchers
STOP_S: Final = 60.0  #: longest wait for the end of all tasks
FORCED_SIGNALS: Final = 2  #: so many end the wait for tasks
EXIT_UNREACHABLE: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitOptions:
    """Options of the command that starts a visitor."""

    code: VisitorCode
    until_ms: int | None  #: wall clock
    idle_s: float | None


class Visitor:
    """One visit, from the invite to the end."""

    def __init__(
        self, config: AgentConfig, log: Logger, options: VisitOptions, folder: Path
    ) -> None:
        self._config = replace(config, paths=_paths_in(config, folder))
        self._log, self._options = log.bind(node=config.name), options
        self._clock = SystemClock()
        self._key = NodeKey.generate()  #: it is never written to disk

    async def run(self) -> int:
        """Join, run tasks until the visit is over, and return the exit code.

        Raises:
            ConfigError: a setting cannot be used.
            PairingFailed: no member accepted the invite.
        """
        signals = StopSignals()
        config = self._config
        account = resolve_account(config.options.task_user)
        config = self._config = replace(config, account=account)
        make_folders(config.paths, account)
        become_subreaper()
        sys.unraisablehook = build_unraisable_hook(self._log, self._clock)
        grant, seeds = await join_as_visitor(
            config.name, self._key.public_bytes(), self._options.code, self._clock
        )
        self._build(grant, seeds, signals.received.set)
        async with asyncio.TaskGroup() as tasks:
            await self._serve(tasks, signals)
        if self._loop.failure is not None:
            raise self._loop.failure
        is_lost = self._node.leave_reason is LeaveReason.UNREACHABLE
        return EXIT_UNREACHABLE if is_lost else 0

    def _build(
        self,
        grant: VisitGrant,
        seeds: Sequence[Address],
        on_stopped: Callable[[], None],
    ) -> None:
        config, clock = self._config, self._clock
        self._trust = VisitorTls(grant, self._key)
        now_ms = clock.now().wall_ms
        ends_ms = min(grant.ends_ms, self._options.until_ms or grant.ends_ms)
        info = self._node_info(ends_ms)
        settings = Settings(node=info, timing=config.timing, limits=config.limits)
        visit = Visit(
            seeds=(tuple(seeds),),
            ends_ms=ends_ms,
            return_s=min(RETURN_S_MAX, max(0, ends_ms - now_ms) / 1000 / RETURN_PART),
            idle_s=self._options.idle_s,
        )
        self._node = VisitorNode(settings, visit)
        self._loop = StepLoop(
            self._node, clock=clock, log=self._log, on_stopped=on_stopped
        )
        self._build_runner(info)
        self._transport = Transport(
            trust=self._trust,
            limits=config.limits,
            clock=clock,
            hello=lambda: self._node.hello(clock.now()),
            on_event=self._loop.post,
            on_note=partial(log_line, self._log),
            on_duplicate=on_stopped,
        )

    def _build_runner(self, info: NodeInfo) -> None:
        blob_store, archive = build_file_stores(self._config, self._clock)
        self._fetcher = BlobFetcher(
            blob_store,
            self._trust.lan_client_context,
            lambda _first, _known: self._holders(),
            (info.id, info.name),
            Lenders(blob_store, self._clock),
        )
        self._fetcher.find_outputs = self._find_outputs
        self._pool = build_runner(
            self._config,
            info,
            self._clock,
            archive,
            self._fetcher,
            SentOutputs(
                OutputReader(self._config.paths.outputs, archive.captured.contents),
                self._fetcher,
                lambda: next(iter(self._holders()), None),
            ),
            lambda reports: self._loop.handle(ev.AttemptsEnded(reports)),
        )

    def _node_info(self, ends_ms: int) -> NodeInfo:
        return node_info(
            self._config,
            self._config.name,
            id=self._trust.node_id,
            boot=self._clock.hex_digits(16),
            peer_port=0,
            lan_port=0,
            leaves_ms=ends_ms,
        )

    def _holders(self) -> list[Holder]:
        """Return the dispatcher, which has all files of a visitor's tasks."""
        return [
            Holder(
                contact.id,
                tuple(lan_url(a.host, contact.lan_port) for a in contact.addresses),
            )
            for contact in self._node.contacts
            if contact.id == self._node.dispatcher
        ]

    def _find_outputs(self, task: str) -> list[tuple[str, BlobSource]]:
        """Return the trees of a task's outputs. Blocks."""
        found = self._fetcher.find_output_trees(
            lambda: next(iter(self._holders()), None), task
        )
        return [(owner, BlobSource(tree, self._holders)) for owner, tree in found]

    async def _serve(self, tasks: asyncio.TaskGroup, signals: StopSignals) -> None:
        """Run tasks until the node has stopped, or does not stop in time."""
        loop, pool, links = self._loop, self._pool, self._transport
        output = LiveOutput(tasks, pool.recorder, links.send)
        loop.set_notes()
        loop.set_performers(
            {
                ef.Send: lambda e: links.send(e.peer, e.messages),
                ef.Dial: lambda e: links.dial(e.node, e.addresses),
                ef.Disconnect: lambda e: links.disconnect(e.peer, e.reason),
                ef.Start: lambda e: pool.start_attempts(e.items, dict(e.holders)),
                ef.Stop: lambda e: pool.stop_attempts(e.items, e.reason),
                ef.ReleaseWaiting: lambda _: pool.release_waiting(),
                ef.ServeOutput: output.serve,
            }
        )
        await links.start(tasks, ())
        sampling = tasks.create_task(self._sample())
        loop.start()
        await self._wait(signals)
        sampling.cancel()
        loop.close()
        output.close()
        await links.close()
        await pool.close()

    async def _wait(self, signals: StopSignals) -> None:
        """Wait until the node has stopped; a second signal ends the wait."""
        has_changed, is_asked = signals.received, False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                while not self._loop.is_stopped and signals.count < FORCED_SIGNALS:
                    if signals.count and not is_asked:
                        is_asked = True
                        self._loop.post(ev.StopRequested(0.0))
                        limit.reschedule(asyncio.get_running_loop().time() + STOP_S)
                    await has_changed.wait()
                    has_changed.clear()

    async def _sample(self) -> None:
        sampler = LoadSampler(self._config.paths.state)
        while True:
            is_failing = not self._pool.check_launchers()
            with contextlib.suppress(OSError):
                self._loop.post(ev.LoadSampled(sampler.sample(), is_failing))
            await asyncio.sleep(SAMPLE_S)


def _paths_in(config: AgentConfig, folder: Path) -> Paths:
    """Return the paths of a visitor: all of them in its folder."""
    is_asked = config.options.workdir is not None
    return Paths(
        state=folder,
        workdir=config.paths.workdir if is_asked else folder / "work",
        secret=folder / "none",
        runtime=folder,
    )


def run(
    config: AgentConfig,
    options: VisitOptions,
    environ: MutableMapping[str, str] = os.environ,
) -> int:
    """Run a visitor until its visit is over; return the exit code of the process."""
    use_lossy_stderr()
    log = configure(config.options.log_format, config.options.log_level, environ, None)
    config = replace(
        config, inherited=InheritedSettings(os.umask(0o077), disable_core_dumps())
    )
    folder = VisitorFolder(config.options.state_dir)
    try:
        return asyncio.run(Visitor(config, log, options, folder.path).run())
    finally:
        folder.erase()
