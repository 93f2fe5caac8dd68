"""The lifecycle of an agent: secret, start, run, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from pathlib import Path

from octaskly.agent.components import Components
from octaskly.agent.join_service import MeshChangeCallbacks
from octaskly.agent.node_setup import check_socket_path, make_folders
from octaskly.agent.process_hooks import (
    Banner,
    GarbageCollection,
    StopSignals,
    SystemdNotifier,
    build_unraisable_hook,
)
from octaskly.agent.unpaired import serve_unpaired
from octaskly.config.agent import AgentConfig
from octaskly.config.task_account import resolve_account
from octaskly.core.node.shutdown import PROCESS_EXIT_S
from octaskly.joining import change_mesh
from octaskly.joining.change_mesh import isolate_mesh_state
from octaskly.mesh.discovery.mdns_scan import FIRST_SCAN_S, scan_meshes
from octaskly.mesh.wire import WirePacker
from octaskly.runner.processes.proc_tree import become_subreaper
from octaskly.store import Store
from octaskly.store.tables.database import DatabaseLock
from octaskly.system.clock import SystemClock
from octaskly.system.listening_sockets import (
    LoopbackPort,
    open_loopback_port,
    take_inherited_sockets,
)
from octaskly.system.log import Logger
from octaskly.trust import MeshSecret, NodeKey, SecretFile, create_secret_file
from octaskly.trust.secret_file import SecretUse

BANNER_WAIT_S = 5.0  #: then the banner says that no dispatcher is elected
CHECK_S = 2.0  #: between two samples of load and health
SECRET_POLL_S = 1.0  #: between checks for the secret file, while unpaired
CLOSE_S = 20.0  #: longest shutdown after the end of all tasks, announced to systemd
LOOP_LAG_S_MAX = 5.0  #: with a larger lag, the watchdog is not notified
#: Longest wait of a thread for the GIL; Python's default is 5 ms.
GIL_SWITCH_INTERVAL_S = 0.001


class Agent:
    """One agent process, which runs one node at a time."""

    def __init__(
        self,
        config: AgentConfig,
        log: Logger,
        notifier: SystemdNotifier,
        banner: Banner,
        signals: StopSignals,
        environ: MutableMapping[str, str],
    ) -> None:
        self._config, self._environ = config, environ
        self._log = log.bind(node=config.name)
        self._notifier, self._banner = notifier, banner
        self._clock, self._garbage_collection = SystemClock(), GarbageCollection()
        self._secret_file = SecretFile(config.paths.secret, config.paths.state)
        self._components: Components | None = None
        self._signals, self._has_changed = signals, signals.received
        self._is_duplicate = False  #: another agent runs with this node's id
        self._was_renewed = False
        self._has_joined_other_mesh = False  #: the secret of another mesh is in place
        self._is_leaving = False  #: the node leaves its mesh and stops
        self._mesh_changes = MeshChangeCallbacks(
            self._on_mesh_joined, self._on_mesh_left
        )
        self._secret_use = SecretUse(config.paths.secret)

    async def run(self, meshes: frozenset[str] | None) -> int:
        """Run until a stop is requested; return the exit code of the process.

        Args:
            meshes: The meshes that a scan has found; None: not scanned yet.

        Raises:
            ConfigError, StoreError: a folder, a file or a port cannot be used.
        """
        # First of all: other processes must not inherit them.
        inherited = take_inherited_sockets(self._environ)
        if change_mesh.is_leaving(self._config.paths):
            self._delete_mesh_state("a leave was requested before the agent stopped")
        self._make_folders()
        # Fail now if another agent holds the database, before a secret is created.
        DatabaseLock(self._config.paths.database).release()
        become_subreaper()
        sys.unraisablehook = build_unraisable_hook(self._log, self._clock)
        self._secret_use.register()
        requested = self._config.options.api_port
        port = open_loopback_port(requested, inherited, self._log)
        with contextlib.closing(port):
            await self._run_nodes(port, meshes)
        if self._is_leaving:
            self._delete_mesh_state("octaskly leave")
        self._log.info("agent stopped")
        return 0

    async def _run_nodes(
        self, loopback_port: LoopbackPort, meshes: frozenset[str] | None
    ) -> None:
        """Run one node after another until the agent stops or leaves its mesh.

        All of them serve the same port, so that no other user can take it in between.
        """
        secret, is_first = await self._obtain_secret(loopback_port, meshes)
        while secret is not None:
            self._isolate_mesh_state(secret.mesh_id)
            await self._run_node(loopback_port, is_first=is_first)
            if self._is_duplicate:
                self._replace_node_key()
            elif self._has_joined_other_mesh:
                self._has_joined_other_mesh = False
                secret, is_first = await self._obtain_secret(loopback_port, None)
            else:
                break

    async def _run_node(self, loopback_port: LoopbackPort, *, is_first: bool) -> None:
        """Run one node until it stops, gets another id or changes its mesh."""
        store = Store(
            self._config.paths.database,
            WirePacker(),
            self._persisted,
            self._clock,
            bytes_max=self._config.options.retained_bytes,
        )
        saved = store.open()
        try:
            parts = self._components = Components(
                self._config,
                loopback_port,
                self._secret_file,
                store,
                saved,
                self._clock,
                self._log,
                is_first=is_first,
                on_stopped=self._has_changed.set,
                on_duplicate=self._on_duplicate_node,
                mesh_changes=self._mesh_changes,
            )
            async with asyncio.TaskGroup() as tasks:
                await parts.start(tasks)
                self._garbage_collection.freeze_startup_objects()
                # The loop releases the GIL at each system call. The writer thread may
                # then hold it for this interval.
                sys.setswitchinterval(GIL_SWITCH_INTERVAL_S)
                self._notifier.notify_ready()
                watch = tasks.create_task(self._monitor(parts))
                greeting = tasks.create_task(self._greet(parts))
                await self._serve_until_stopped(parts)
                watch.cancel()
                greeting.cancel()
                await parts.close()
        finally:
            await store.close()
        if parts.loop.failure is not None:
            raise parts.loop.failure

    async def _greet(self, components: Components) -> None:
        """Print the banner once the node has found its place in the mesh."""
        if not self._banner.is_wanted:
            return
        view = components.gateway.view
        found = await view.wait_until_member(BANNER_WAIT_S)
        mesh = components.gateway.mesh_id
        assert mesh is not None, "only an unpaired node has no mesh"
        names = {member.id: member.name for member in view.live_members}
        self._banner.print_member(
            name=names.get(view.node_id, self._config.name),
            mesh=mesh,
            dispatcher=names.get(found.node, found.node) if found else None,
            nodes=len(names),
        )

    def _on_duplicate_node(self) -> None:
        """Restart with a new id, at most once: a new id has no duplicate."""
        if not self._was_renewed:
            self._is_duplicate = True
            self._has_changed.set()

    def _replace_node_key(self) -> None:
        """Create a new node key: the state folder is a copy of one in use."""
        key = NodeKey.renew(self._config.paths.state)
        self._is_duplicate, self._was_renewed = False, True
        self._config = replace(self._config, was_renewed=True)
        self._log.warning(
            "node id renewed",
            node_id=key.node_id,
            cause="another agent runs with the key of this state folder",
            hint="when you copy a state folder, leave out node.key",
        )

    def _on_mesh_joined(self, seeds: tuple[tuple[str, int], ...]) -> None:
        """Restart the node with the stored secret of another mesh."""
        self._config = replace(self._config, seeds=(*self._config.seeds, *seeds))
        self._has_joined_other_mesh = True
        self._has_changed.set()

    def _on_mesh_left(self) -> None:
        """Stop the node and delete its mesh state."""
        self._is_leaving = True
        self._has_changed.set()

    def _delete_mesh_state(self, cause: str) -> None:
        """Delete the state of the mesh that this node has left."""
        paths = self._config.paths
        if change_mesh.delete_mesh_state(paths, self._secret_use):
            cause += "; other agents on this machine still use the secret file"
        self._log.warning("left the mesh", cause=cause)

    def _isolate_mesh_state(self, mesh_id: str) -> None:
        """Move the log of a previous mesh aside, so that it enters no other mesh."""
        config = self._config
        left = isolate_mesh_state(config.paths, mesh_id)
        if left is not None:
            self._log.warning("log of another mesh moved aside", folder=str(left))
            make_folders(config.paths, config.account)

    def _persisted(self, number: int) -> None:
        if self._components is not None:
            self._components.on_persisted(number)

    def _make_folders(self) -> None:
        options = self._config.options
        account = resolve_account(options.task_user)
        self._config = replace(self._config, account=account)
        check_socket_path(self._config.paths, self._config.name)
        make_folders(self._config.paths, account)
        if os.geteuid() == 0 and account is None:
            self._log.warning(
                "tasks run as root",
                hint="every member of the mesh can run commands as root here; to"
                " prevent this: octaskly agent --task-user NAME",
            )

    async def _obtain_secret(
        self, loopback_port: LoopbackPort, meshes: frozenset[str] | None
    ) -> tuple[MeshSecret | None, bool]:
        """Return the mesh secret, and whether this node has just created it.

        An agent that discovers a mesh does not create another mesh. It waits for the
        secret file. The secret is None if the agent has to stop meanwhile.
        """
        path = self._config.paths.secret
        if _exists(path):
            return self._secret_file.load(), False
        if meshes is None:
            meshes = await scan_meshes(FIRST_SCAN_S, self._config.options.interfaces)
        if self._signals.count > 0:
            return None, False
        # Another agent of this user may have created the secret during the scan.
        if _exists(path) or not meshes:
            was_made = create_secret_file(path)
            if was_made:
                self._log.info("mesh secret created", file=str(path))
            return self._secret_file.load(), was_made
        async with serve_unpaired(
            self._config,
            loopback_port,
            self._clock,
            self._log,
            self._mesh_changes,
        ):
            self._report_unpaired(meshes)
            self._notifier.notify_ready()
            self._notifier.set_status(
                "unpaired: a mesh was discovered, but there is no secret here"
            )
            while not (_exists(path) or self._signals.count or self._is_leaving):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SECRET_POLL_S):
                        await self._has_changed.wait()
        self._has_joined_other_mesh = False
        is_over = self._signals.count or self._is_leaving
        return (None if is_over else self._secret_file.load()), False

    def _report_unpaired(self, meshes: frozenset[str]) -> None:
        if self._banner.is_wanted:
            self._banner.print_unpaired()
            return
        self._log.warning(
            "unpaired",
            meshes=", ".join(sorted(meshes)),
            hint="`octaskly invite` on a member, then here `octaskly join CODE`; or"
            " `octaskly agent --new-mesh`, which creates a mesh of its own",
        )

    async def _serve_until_stopped(self, components: Components) -> None:
        """Run until a stop or a failure; then transfer the role and drain."""
        await self._wait_until(
            lambda: (
                self._signals.count > 0
                or self._is_duplicate
                or self._has_joined_other_mesh
                or self._is_leaving
                or components.loop.is_stopped
            )
        )
        if components.loop.is_stopped:
            return
        drain_s, ending_s = 0.0, self._config.timing.kill_grace_s + PROCESS_EXIT_S + 10
        if not (self._is_duplicate or self._has_joined_other_mesh):
            drain_s = float(self._config.options.drain_s)
            self._notifier.notify_stopping(drain_s + ending_s + CLOSE_S)
        # A dispatcher that is asked to stop takes no entries any more.
        await components.flush_audit_log()
        components.request_stop(drain_s, is_leaving=self._is_leaving)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s + ending_s):
                await self._wait_until(
                    lambda: self._signals.count > 1 or components.loop.is_stopped
                )

    async def _wait_until(self, is_true: Callable[[], bool]) -> None:
        while not is_true():
            await self._has_changed.wait()
            self._has_changed.clear()

    async def _monitor(self, components: Components) -> None:
        """Sample the machine, and notify the watchdog while the loop is responsive."""
        period_s = min(CHECK_S, self._notifier.watchdog_s or CHECK_S)
        while True:
            components.sample_machine()
            components.fail_if_store_stopped()
            late_s = self._clock.now().mono_s - components.loop.last_turn_s
            if late_s < LOOP_LAG_S_MAX and components.store_failure() is None:
                self._notifier.notify_watchdog()
            self._notifier.set_status(components.gateway.view.status_line())
            self._garbage_collection.collect_if_due()
            await asyncio.sleep(period_s)


def _exists(path: Path) -> bool:
    # `lexists` never raises. If the folder is unreadable, reading or creating the
    # secret raises an error that names it.
    return os.path.lexists(path)
