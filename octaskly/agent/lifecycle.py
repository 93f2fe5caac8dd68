"""The life of an agent, from its secret to its end, in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from octaskly.agent.admissions import Moves
from octaskly.agent.components import Parts
from octaskly.agent.process import Cycles, Notifier, Signals, unraised
from octaskly.agent.startup import make_folders
from octaskly.agent.unpaired import unpaired
from octaskly.config.account import account_for
from octaskly.config.agent import AgentConfig
from octaskly.core.node.shutdown import PROCESS_EXIT_S
from octaskly.joining import state_folder
from octaskly.joining.state_folder import set_apart
from octaskly.mesh.discovery.scan import FIRST_LOOK_S, sightings
from octaskly.mesh.wire import WirePacker
from octaskly.runner.processes.proc_tree import become_subreaper
from octaskly.store import Store
from octaskly.store.tables.database import Lock
from octaskly.system.clock import SystemClock
from octaskly.system.log import Logger
from octaskly.trust import Keyring, MeshSecret, NodeKey, make
from octaskly.trust.secret_file import SecretUse

CHECK_S = 2.0  #: between two samples of load and health
LOOK_S = 1.0  #: between two looks for the secret file, while unpaired
CLOSE_S = 20.0  #: for systemd: what closing may take behind the end of all tasks
LAG_S_MAX = 5.0  #: a loop that is later than this is not alive for the watchdog
SWITCH_S = 0.001  #: a thread that wants Python's lock waits no longer; 5 ms by default


class Agent:
    """One life of a node."""

    def __init__(
        self, config: AgentConfig, log: Logger, notifier: Notifier, signals: Signals
    ) -> None:
        self._config = config
        self._log = log.bind(node=config.name)
        self._notifier = notifier
        self._clock, self._cycles = SystemClock(), Cycles()
        self._keyring = Keyring(config.paths.secret, config.paths.state)
        self._parts: Parts | None = None
        self._signals, self._news = signals, signals.news
        self._is_duplicate = False  #: another agent lives with this node's id
        self._was_renewed = False
        self._is_moving = False  #: the secret of another mesh is in place
        self._is_leaving = False  #: it shall forget its mesh, and stop
        self._moves = Moves(self._entered, self._left)
        self._use = SecretUse(config.paths.secret)

    async def run(self, meshes: frozenset[str] | None) -> int:
        """Live until told to stop; return the exit code of the process.

        Args:
            meshes: Those in sight, if somebody has looked already.

        Raises:
            ConfigError, StoreError: something cannot be used.
        """
        if state_folder.is_begun(self._config.paths):
            self._forget("this was asked for before it stopped")
        self._make_folders()
        # Said before a secret is made, or waited for, that nobody may use.
        Lock(self._config.paths.database).release()
        become_subreaper()
        sys.unraisablehook = unraised(self._log, self._clock)
        self._use.begin()
        secret, is_first = await self._secret(meshes)
        while secret is not None:
            self._set_apart(secret.mesh_id)
            await self._be(is_first=is_first)
            if self._is_duplicate:
                self._renew()
            elif self._is_moving:
                self._is_moving = False
                secret, is_first = await self._secret(None)
            else:
                break
        if self._is_leaving:
            self._forget("octaskly leave")
        self._log.info("agent stopped")
        return 0

    async def _be(self, *, is_first: bool) -> None:
        """Be one node, until told to stop or to be another."""
        store = Store(
            self._config.paths.database,
            WirePacker(),
            self._persisted,
            self._clock,
            bytes_max=self._config.options.retained_bytes,
        )
        saved = store.open()
        try:
            parts = self._parts = Parts(
                self._config,
                self._keyring,
                store,
                saved,
                self._clock,
                self._log,
                is_first=is_first,
                on_stopped=self._news.set,
                on_duplicate=self._met_duplicate,
                moves=self._moves,
            )
            async with asyncio.TaskGroup() as tasks:
                await parts.start(tasks)
                self._cycles.begin()
                # At each system call the loop gives Python's lock away, and the
                # writer keeps it.
                sys.setswitchinterval(SWITCH_S)
                self._notifier.ready()
                watch = tasks.create_task(self._watch(parts))
                await self._live(parts)
                watch.cancel()
                await parts.close()
        finally:
            await store.close()
        if parts.loop.failure is not None:
            raise parts.loop.failure

    def _met_duplicate(self) -> None:
        """Another agent lives with this node's id; a second time would be a lie."""
        if not self._was_renewed:
            self._is_duplicate = True
            self._news.set()

    def _renew(self) -> None:
        """Become another node: this state folder is a copy of one that is in use."""
        key = NodeKey.renew(self._config.paths.state)
        self._is_duplicate, self._was_renewed = False, True
        self._config = replace(self._config, was_renewed=True)
        self._log.warning(
            "node id renewed",
            node_id=key.node_id,
            cause="another agent lives with the key of this state folder",
            hint="a copied state folder is to be without node.key",
        )

    def _entered(self, seeds: tuple[tuple[str, int], ...]) -> None:
        """Another mesh's secret is in place: begin anew with it."""
        self._config = replace(self._config, seeds=(*self._config.seeds, *seeds))
        self._is_moving = True
        self._news.set()

    def _left(self) -> None:
        """Stop, and forget the mesh."""
        self._is_leaving = True
        self._news.set()

    def _forget(self, cause: str) -> None:
        """Forget the mesh; nobody of this node is left in it."""
        paths = self._config.paths
        if state_folder.finish(paths, self._use):
            cause += "; other agents of this machine go on with the secret file"
        self._log.warning("left the mesh", cause=cause)

    def _set_apart(self, mesh_id: str) -> None:
        """Let nothing of a mesh that this node has left get into another one."""
        config = self._config
        left = set_apart(config.paths, mesh_id)
        if left is not None:
            self._log.warning("log of another mesh moved aside", folder=str(left))
            make_folders(config.paths, config.name, config.account)

    def _persisted(self, number: int) -> None:
        if self._parts is not None:
            self._parts.persisted(number)

    def _make_folders(self) -> None:
        options = self._config.options
        account = account_for(options.task_user)
        self._config = replace(self._config, account=account)
        make_folders(self._config.paths, self._config.name, account)
        if os.geteuid() == 0 and account is None:
            self._log.warning(
                "tasks run as root",
                hint="every member of the mesh may be root here; to prevent that:"
                " octaskly agent --task-user NAME",
            )

    async def _secret(
        self, meshes: frozenset[str] | None
    ) -> tuple[MeshSecret | None, bool]:
        """Return the mesh secret, and whether this node has just made it.

        A machine that sees a mesh never makes a second one silently: it waits for the
        secret file. None: it was told to stop meanwhile.
        """
        path = self._config.paths.secret
        if _exists(path):
            return self._keyring.load(), False
        if meshes is None:
            meshes = await sightings(FIRST_LOOK_S, self._config.options.interfaces)
        # Another agent of this user may have made it while we looked.
        if _exists(path) or not meshes:
            was_made = make(path)
            if was_made:
                self._log.info("mesh secret made", file=str(path))
            return self._keyring.load(), was_made
        async with unpaired(self._config, meshes, self._clock, self._log, self._moves):
            self._notifier.ready()
            self._notifier.status("unpaired: a mesh is in sight, no secret here")
            while not (_exists(path) or self._signals.count or self._is_leaving):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._news.wait()
        self._is_moving = False
        is_over = self._signals.count or self._is_leaving
        return (None if is_over else self._keyring.load()), False

    async def _live(self, parts: Parts) -> None:
        """Run until asked to stop or failed; then hand over and drain."""
        await self._until(
            lambda: (
                self._signals.count > 0
                or self._is_duplicate
                or self._is_moving
                or self._is_leaving
                or parts.loop.is_stopped
            )
        )
        if parts.loop.is_stopped:
            return
        drain_s, ending_s = 0.0, self._config.timing.kill_grace_s + PROCESS_EXIT_S + 10
        if not (self._is_duplicate or self._is_moving):
            drain_s = float(self._config.options.drain_s)
            self._notifier.stopping(drain_s + ending_s + CLOSE_S)
        parts.ask_to_stop(drain_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s + ending_s):
                await self._until(
                    lambda: self._signals.count > 1 or parts.loop.is_stopped
                )

    async def _until(self, is_true: Callable[[], bool]) -> None:
        while not is_true():
            await self._news.wait()
            self._news.clear()

    async def _watch(self, parts: Parts) -> None:
        """Sample the load, tell systemd that the main loop passes its self-check."""
        period_s = min(CHECK_S, self._notifier.watchdog_s or CHECK_S)
        while True:
            parts.sample()
            parts.check()
            late_s = self._clock.now().mono_s - parts.loop.turn_s
            if late_s < LAG_S_MAX and parts.failure() is None:
                self._notifier.alive()
            self._notifier.status(parts.gateway.view.status_line())
            self._cycles.look()
            await asyncio.sleep(period_s)


def _exists(path: Path) -> bool:
    # An unreadable folder raises when it is read, which names it.
    return os.path.lexists(path)
