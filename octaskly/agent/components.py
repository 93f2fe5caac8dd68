"""The components of a member: builds, starts and closes them in order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from msgspec import structs

from octaskly.agent.core_loop import CoreLoop
from octaskly.agent.files.blob_holders import BlobHolders
from octaskly.agent.files.tree_keeper import TreeKeeper
from octaskly.agent.files.tree_sizer import TreeSizer
from octaskly.agent.gateway.gateway import AgentGateway
from octaskly.agent.gateway.submissions import QueueLimits
from octaskly.agent.gateway.task_lookup import LocalFiles
from octaskly.agent.health import ApiProbe, HealthChecks, MachineMonitor
from octaskly.agent.join_service import MeshChangeCallbacks, build_member_join_service
from octaskly.agent.mesh_secret import MeshSecretHolder
from octaskly.agent.metrics import MetricsReport
from octaskly.agent.node_setup import (
    assigned_name,
    describe_agent,
    node_info,
    resolve_seed,
    write_description,
)
from octaskly.agent.runner_setup import build_pool
from octaskly.agent.webhooks import WebhookScheduler
from octaskly.api import ApiServer, HttpTimeouts
from octaskly.api.http.handler_types import MemberFiles
from octaskly.api.security.origin_checks import AllowList
from octaskly.api.webhook_sender import WebhookSender
from octaskly.config.agent import AgentConfig
from octaskly.config.defaults import SOCKET_GROUP
from octaskly.core import events as ev
from octaskly.core.effects import LogLine
from octaskly.core.model.ids import AttemptId, TaskId
from octaskly.core.model.nodes import NodeInfo
from octaskly.core.model.settings import Settings
from octaskly.core.model.tree_sizes import blob_key
from octaskly.core.node.node import Node
from octaskly.errors import StoreError
from octaskly.files.manifest import ManifestError
from octaskly.mesh.discovery.discovery import Discovery
from octaskly.mesh.discovery.interfaces import LocalAddress, local_addresses
from octaskly.mesh.links.tcp import tune_socket
from octaskly.mesh.links.transport import Transport
from octaskly.ports.files import RETENTION_S
from octaskly.rest.mesh import Checkup
from octaskly.runner.files.capture import (
    OutputReader,
    outputs_folder,
    outputs_gone,
)
from octaskly.runner.files.storage_report import StorageReporter
from octaskly.runner.files.visitor_files import VisitorFiles
from octaskly.runner.pool.forgotten_outputs import ForgottenOutputs
from octaskly.store import Store
from octaskly.system.clock import SystemClock
from octaskly.system.listening_sockets import (
    WILDCARD_ADDRESSES,
    LoopbackPort,
    bind_ports,
    move_port,
    port_of,
)
from octaskly.system.log import Logger, log_line
from octaskly.system.pending_handshakes import MemberAddresses
from octaskly.trust import MeshSecret, MeshTls, NodeKey, SecretFile, TokenSigner


def _remembered_addresses(saved: ev.SavedState) -> MemberAddresses:
    """Return the addresses of the members that this node knew when it stopped."""
    addresses = MemberAddresses()
    for peer in reversed(saved.peers):  # The latest contact is first.
        for address in peer.addresses:
            addresses.record(address.host)
    return addresses


AUDIT_FLUSH_S: Final = 1.0  #: longest wait for unwritten audit entries at shutdown


class Components:
    """All components of one member."""

    def __init__(
        self,
        config: AgentConfig,
        loopback_port: LoopbackPort,
        secret_file: SecretFile,
        store: Store,
        saved: ev.SavedState,
        clock: SystemClock,
        log: Logger,
        *,
        is_first: bool,
        on_stopped: Callable[[], None],
        on_duplicate: Callable[[], None],
        mesh_changes: MeshChangeCallbacks,
    ) -> None:
        """Bind the ports and build all components; nothing is served yet.

        Args:
            config: The settings.
            loopback_port: The port of the local API; the caller closes it.
            secret_file: The file of the mesh secret, which must exist.
            store: The open log; the caller closes it.
            saved: The state that the log had when it was opened.
            clock: The clock and the random numbers of the agent.
            log: Receives log events.
            is_first: This node has just created the mesh, so it skips discovery.
            on_stopped: Called once the core has stopped.
            on_duplicate: Called when another agent runs with this node's id.
            mesh_changes: Called when this node joins another mesh or leaves its mesh.

        Raises:
            ConfigError: the node key or a port cannot be used.
        """
        self._config, self._store, self._clock, self._log = config, store, clock, log
        secret, key = self._build_trust(secret_file)
        self._bind_ports(loopback_port)
        self._info = self._node_info(assigned_name(config.name, saved.name))
        self._machine_monitor = MachineMonitor(store, config)
        self._peers_known = len(saved.peers)
        self._member_addresses = _remembered_addresses(saved)
        self._background_tasks: list[asyncio.Task[None]] = []  #: `close` cancels them
        self._build_core(saved, is_first=is_first, on_stopped=on_stopped)
        self._build_join_service(secret, key, mesh_changes)
        self._build_shell(on_duplicate)
        self._build_webhooks(secret)

    def _bind_ports(self, loopback_port: LoopbackPort) -> None:
        self._loopback_port = loopback_port
        options = self._config.options
        self._local_addresses = local_addresses(options.interfaces)
        lan = [address.host for address in self._local_addresses]
        self._peer_sockets, self._lan_sockets = bind_ports(
            options, lan if options.interfaces else WILDCARD_ADDRESSES, self._log
        )

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Start links, the API, the core and mDNS, in this order."""
        self.loop.connect(
            links=self._transport,
            runner=self._pool,
            discovery=self._discovery,
            gateway=self.gateway,
            secret_holder=self._secret_holder,
            reads=tasks,
            on_ended=self._webhooks.on_tasks_ended,
        )
        self._join_service.start(tasks)
        self._visitor_files.start(tasks)
        self._subscribe_to_secret(tasks)
        await self._transport.start(tasks, self._peer_sockets)
        loopback = self._loopback_port.listeners()
        await self._api.serve_loopback(loopback)
        self._api.serve_lan(self._lan_sockets, self._member_addresses)
        await self._api.serve_unix(self._socket_path, group=SOCKET_GROUP)
        self.loop.start()
        self._background_tasks += [
            tasks.create_task(self._pool.recorder.run_cleanup()),
            tasks.create_task(self._webhooks.run()),
            tasks.create_task(self._tree_keeper.run()),
            tasks.create_task(self._output_copies.run()),
            tasks.create_task(self._forgotten_outputs.run()),
            tasks.create_task(self._api.auditor.run()),
            tasks.create_task(self.gateway.history_sampler.run()),
            tasks.create_task(self._build_api_probe().run()),
        ]
        self._dial_seeds(tasks)
        await self._discovery.start(tasks, peers_known=self._peers_known)
        description = self._description()
        write_description(self._config, description)
        self._log.info(
            "agent ready",
            api_url=description.api_url,
            lan_url=description.lan_url,
            peer_port=description.peer_port,
            mesh=description.mesh,
        )

    async def flush_audit_log(self) -> None:
        """Write the entries that wait, if there is a dispatcher, for a short time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AUDIT_FLUSH_S):
                await self._api.auditor.flush()

    def request_stop(self, drain_s: float, *, is_leaving: bool) -> None:
        """Ask the core to transfer the dispatcher role and to drain.

        Args:
            drain_s: Time that running tasks get.
            is_leaving: This node id never comes back.
        """
        self.loop.post(ev.StopRequested(drain_s, is_leaving))

    def sample_machine(self) -> None:
        """Sample the load, the launchers and the disk, and post the results."""
        is_failing = not self._pool.check_launchers()
        self.loop.post(
            self._machine_monitor.sample_load(are_launchers_failing=is_failing)
        )
        if (changed := self._machine_monitor.check_disk()) is not None:
            self.loop.post(changed)
        if self._blob_store.has_changes:
            came, went = self._blob_store.take_changes()
            self.loop.post(
                ev.HeldBlobsChanged(
                    tuple(map(blob_key, came)), tuple(map(blob_key, went))
                )
            )

    def on_persisted(self, number: int) -> None:
        """Report to core, long polls and event feed that write `number` is on disk."""
        self.loop.handle(ev.Persisted(number))
        self.gateway.waiters.on_persisted(number)
        self.gateway.feed.on_committed()

    def store_failure(self) -> str | None:
        """Return why the log cannot be written, or None if it can."""
        return self._store.write_failure

    def fail_if_store_stopped(self) -> None:
        """End the node if the store's writer has stopped; systemd restarts it."""
        if self._store.has_writer_stopped and self.loop.failure is None:
            self.loop.fail(
                StoreError(self._store.write_failure or "the writer stopped")
            )

    async def close(self) -> None:
        """Answer pending requests, close links and end all processes of tasks."""
        await self._discovery.close()  # It may open listeners and write the file.
        with contextlib.suppress(FileNotFoundError):
            self._config.paths.description.unlink()
        for work in self._background_tasks:
            work.cancel()
        await self.flush_audit_log()
        self.gateway.close()
        self._visitor_files.close()
        await self._join_service.close()
        await self._api.close()
        self.loop.close()
        await self._transport.close()
        await self._pool.close()

    def _subscribe_to_secret(self, tasks: asyncio.TaskGroup) -> None:
        """Pass each renewed mesh secret to the components that use it."""
        self._discovery.advertise_retired(self._secret_holder.secret.retired)
        self._secret_holder.connect(
            node=self._node,
            pending_requests=self.gateway.pending_requests,
            post=self.loop.post,
            send=self._transport.send,
            tasks=tasks,
            prepare_tls=self._prepare_tls,
            secret_listeners=(
                self._token_signer.use_secret,
                lambda s: self._api.close_connections_of(
                    s.revoked, is_settled=len(s.accepted) == 1
                ),
                lambda secret: self._discovery.advertise_retired(secret.retired),
                lambda secret: self._poster.set_key(secret.webhook_key()),
            ),
        )

    def _prepare_tls(self, secret: MeshSecret) -> Callable[[], None]:
        """Make the certificates of a renewed secret, in a thread."""
        prepared = self._trust.prepare(secret)
        client_tls = prepared.lan_client_context()

        def use() -> None:
            self._trust.adopt(prepared)
            self._api.set_client_tls(client_tls)

        return use

    # --- building ------------------------------------------------------------------

    def _build_trust(self, secret_file: SecretFile) -> tuple[MeshSecret, NodeKey]:
        """Build what identifies this node; return the mesh secret and its own key."""
        secret = secret_file.load()
        key = NodeKey.load_or_create(self._config.paths.state)
        self._trust, self._token_signer = MeshTls(secret, key), TokenSigner(secret)
        self._secret_holder = MeshSecretHolder(
            secret_file,
            secret,
            key.node_id,
            self._clock,
            self._config.timing,
            self._log,
        )
        return secret, key

    def _node_info(self, name: str) -> NodeInfo:
        return node_info(
            self._config,
            name,
            id=self._trust.node_id,
            boot=self._clock.hex_digits(16),
            peer_port=port_of(self._peer_sockets),
            lan_port=port_of(self._lan_sockets),
            addresses=tuple(address.host for address in self._local_addresses),
        )

    def _build_core(
        self, saved: ev.SavedState, *, is_first: bool, on_stopped: Callable[[], None]
    ) -> None:
        config, name = self._config, self._info.name
        self._socket_path = config.paths.socket_path(name)
        timing = config.timing
        if is_first:
            timing = replace(timing, discovery_alone_s=0.0)
        settings = Settings(
            node=self._info,
            timing=timing,
            limits=config.limits,
            is_strict=config.is_strict,
        )
        self._node = Node(
            settings, structs.replace(saved, keys=self._secret_holder.secret.keys)
        )
        self.loop = CoreLoop(
            self._node,
            clock=self._clock,
            log=self._log,
            store=self._store,
            limits=config.limits,
            on_stopped=on_stopped,
        )
        self.gateway = AgentGateway(
            node_id=self._info.id,
            mesh_id=self._trust.mesh_id,
            store=self._store,
            clock=self._clock,
            post=self.loop.handle,
            files=self._local_files(),
            # The pool does not exist yet.
            stream_output=lambda *what, **how: self._pool.recorder.stream_output(  # noqa: PLW0108
                *what, **how
            ),
            last_load=lambda: self._machine_monitor.load,
            health_checks=HealthChecks(
                self.store_failure,
                self._store.has_disk_room,
                self._secret_holder.lost_membership_reason,
                self._loopback_port.warnings,
            ),
            signer=self._token_signer,
            names={**dict(saved.names), self._info.id: name},
            node=self.loop.node,
            queue_limits=QueueLimits.from_options(config.options),
        )

    def _local_files(self) -> LocalFiles:
        # The pool does not exist yet.
        return LocalFiles(
            read_outputs=lambda *which: self._output_reader.read_tree(*which),  # noqa: PLW0108
            read_input_sources=lambda *which: self._pool.read_input_sources(*which),  # noqa: PLW0108
            make_output_tree=self._make_output_tree,
            size_trees=lambda trees: self._tree_sizer.size_trees(trees),  # noqa: PLW0108
            files_of_tree=lambda tree: self._fetcher.files_of(tree),  # noqa: PLW0108
            note_needed_outputs=lambda: self._tree_keeper.note_needed_outputs(),  # noqa: PLW0108
        )

    def _make_output_tree(self, task: TaskId, attempt: AttemptId) -> str:
        """Return the SHA-256 of the manifest of captured outputs.

        Another task needs them, so they stay for a while.
        """
        captured = self._archive.captured
        folder = outputs_folder(self._config.paths.outputs, task, attempt)
        captured.mark_needed(folder, RETENTION_S)
        try:
            return captured.contents.add_folder(folder)
        except (OSError, ManifestError):
            raise outputs_gone(task) from None

    def _on_wrong_output(self, path: Path) -> None:
        task = path.parent.parent.name
        self._log.warning("outputs on disk are damaged", task=task, sha256=path.name)

    def _on_wrong_copy(self, holder: str, sha256: str) -> None:
        self._log.warning("node sent wrong bytes of a file", node=holder, sha256=sha256)

    def _build_runner(self) -> None:
        holders = BlobHolders(self.gateway, self._info)
        self._pool, self._fetcher, self._archive, self._output_copies = build_pool(
            self._config,
            self._info,
            self._clock,
            tls=self._trust.lan_client_context,
            holders_of=holders.of_blob,
            on_wrong_copy=self._on_wrong_copy,
            copy_holders=holders.of_copies,
            on_ended=lambda reports: self.loop.handle(ev.AttemptsEnded(reports)),
        )
        contents = self._archive.captured.contents
        contents.on_wrong = self._on_wrong_output
        self._output_reader = OutputReader(self._config.paths.outputs, contents)
        fetcher = self._fetcher
        fetcher.find_outputs = partial(holders.find_outputs, fetcher)
        fetcher.name_of = holders.name_of
        self._blob_store = fetcher.blob_store
        self._tree_sizer = TreeSizer(fetcher, self.loop.handle)
        self._storage = StorageReporter(fetcher.blob_store, self._archive)
        self._tree_keeper = TreeKeeper(
            self._store,
            self.gateway.view,
            fetcher,
            self._output_copies,
            self._tree_sizer.size_trees,
            self.gateway.locate_outputs,
            self._log,
        )
        self.gateway.view.on_epoch_start = self._tree_keeper.note_epoch_start
        self._forgotten_outputs = ForgottenOutputs(
            self._archive,
            fetcher,
            dispatcher=self.gateway.dispatcher,
            other_nodes=holders.others,
            find_forgotten=self.gateway.find_forgotten,
            keep_inputs=self._tree_keeper.keep_needed_files,
        )
        self.gateway.on_purged = self._forgotten_outputs.announce
        self._visitor_files = VisitorFiles(
            self._node.visitor_attempts,
            fetcher,
            self._archive,
            self._output_copies,
            self._clock,
        )

    def _build_shell(self, on_duplicate: Callable[[], None]) -> None:
        self._build_runner()
        self._build_links(on_duplicate)
        self._metrics = MetricsReport(
            self._node,
            self.gateway,
            store=self._store,
            pool=self._pool,
            links=lambda: self._transport.link_count,
            clock=self._clock,
            info=self._info,
        )
        self._api = self._build_api()
        self._metrics.connect(self._api)

    def _build_links(self, on_duplicate: Callable[[], None]) -> None:
        config, trust = self._config, self._trust
        self._transport = Transport(
            trust=trust,
            limits=config.limits,
            clock=self._clock,
            hello=lambda: self._node.hello(self._clock.now()),
            on_event=self.loop.post,
            on_note=self._write_log_line,
            on_duplicate=on_duplicate,
            on_violation=self.gateway.view.count_broken_link,
            progress=lambda: self._node.progress,
            bounds=config.options,
            members=self._member_addresses,
        )
        self._discovery = Discovery(
            node=self._info,
            mesh_id=trust.mesh_id,
            clock=self._clock,
            on_event=self.loop.post,
            on_note=self._write_log_line,
            interfaces=config.options.interfaces,
            on_other_mesh=lambda mesh: self._log.warning(
                "another mesh discovered",
                mesh=mesh,
                hint="octaskly join    moves this node to that mesh",
            ),
            on_addresses=self._on_addresses_changed,
            on_clone=partial(self._transport.dial, None),
            on_retired=self._secret_holder.on_retirement_proofs,
        )

    def _build_join_service(
        self, secret: MeshSecret, key: NodeKey, mesh_changes: MeshChangeCallbacks
    ) -> None:
        self._join_service = build_member_join_service(
            self._config,
            secret,
            key,
            self._trust,
            node=self._info,
            gateway=self.gateway,
            store=self._store,
            clock=self._clock,
            log=self._log,
            mesh_changes=mesh_changes,
        )

    def _build_webhooks(self, secret: MeshSecret) -> None:
        self._poster = WebhookSender(secret.webhook_key())
        self._webhooks = WebhookScheduler(
            self._store,
            self.gateway.view,
            self._poster,
            self._clock,
            self._log,
            self.loop.post,
            self.gateway.wait_until_replicated,
        )

    def _build_api(self) -> ApiServer:
        config, trust = self._config, self._trust
        hosts = {socket.gethostname(), f"{socket.gethostname().split('.')[0]}.local"}
        return ApiServer(
            self.gateway,
            verify_token=self.gateway.tokens.verify,
            clock=self._clock,
            node_name=self._info.name,
            on_unexpected_error=self._log_request_failure,
            allowed=AllowList(
                names=(*config.options.allow_hosts, *hosts),
                origins=config.options.cors_origins,
            ),
            lan_ssl=trust.lan_server_contexts(
                [*hosts, *config.options.allow_hosts],
                [address.host for address in self._local_addresses],
            ),
            forward_ssl=trust.lan_client_context(),
            identify_peer=trust.authorized_identity,
            configure_socket=tune_socket,
            limits_per_minute=config.options.rates,
            limits=config.options,
            timeouts=HttpTimeouts.from_options(config.options),
            admissions=self._join_service,
            describe_agent=self._description,
            rotations=self._secret_holder,
            files=MemberFiles(
                self._blob_store,
                self._fetcher.lenders,
                self._tree_keeper,
                self._storage,
                self._forgotten_outputs,
                self._visitor_files,
            ),
            render_metrics=self._metrics.render_report,
        )

    def _description(self) -> Checkup:
        return describe_agent(
            self._config,
            self._info,
            mesh=self._trust.mesh_id,
            loopback_port=self._loopback_port,
            streams=self._node.stream_count,
            stores=self._pool.recorder.store_usage(),
        )

    def _build_api_probe(self) -> ApiProbe:
        return ApiProbe(
            self._api.probe_lan, self._serves_other_nodes, self.loop.post, self._clock
        )

    def _serves_other_nodes(self) -> bool:
        view = self.gateway.dispatcher()
        return view is not None and view.is_self and self._transport.link_count > 0

    # --- callbacks -----------------------------------------------------------------

    def _write_log_line(self, note: LogLine) -> None:
        log_line(self._log, self.gateway.view.with_node_names(note))

    def _log_request_failure(self, request_id: str, error: BaseException) -> None:
        self._log.error("request failed", error=repr(error), request=request_id)

    def _on_addresses_changed(self, addresses: tuple[LocalAddress, ...]) -> None:
        hosts = tuple(address.host for address in addresses)
        self._log.info("addresses changed", addresses=list(hosts))
        self._info = structs.replace(self._info, addresses=hosts)
        self._trust.set_lan_addresses(hosts)
        self._join_service.set_addresses(hosts)
        if self._config.options.interfaces:
            self._listen_on(hosts)
        self.loop.post(ev.AddressesChanged(hosts))
        write_description(self._config, self._description())

    def _listen_on(self, hosts: Sequence[str]) -> None:
        """Serve the same ports at these addresses, and no longer at others."""
        ports = self._info.peer_port, self._info.lan_port
        self._peer_sockets = move_port(self._peer_sockets, ports[0], hosts)
        self._lan_sockets = move_port(self._lan_sockets, ports[1], hosts)
        self._transport.listen(self._peer_sockets)
        self._api.serve_lan(self._lan_sockets, self._member_addresses)

    def _dial_seeds(self, tasks: asyncio.TaskGroup) -> None:
        self._background_tasks += [
            tasks.create_task(self._dial_seed(host, port))
            for host, port in self._config.seeds
        ]

    async def _dial_seed(self, host: str, port: int) -> None:
        """Resolve a `--join` name and post its addresses as a peer hint."""
        addresses = await resolve_seed(host, port, self._log)
        self.loop.post(ev.PeersDiscovered((ev.PeerHint(None, addresses),)))
