"""The parts of a member: built in order, started in order, closed in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from octaskly.agent.admissions import Moves, admissions_of_member
from octaskly.agent.core_loop import CoreLoop
from octaskly.agent.gateway.gateway import AgentGateway
from octaskly.agent.gateway.health import Fitness
from octaskly.agent.mesh_secret import Keeper
from octaskly.agent.metrics import Metrics
from octaskly.agent.startup import (
    addresses_of,
    describe,
    lasting_name,
    node_info,
    write_description,
)
from octaskly.agent.webhooks import Webhooks
from octaskly.api import ApiServer, Deadlines, Site
from octaskly.api.webhook_sender import Poster
from octaskly.config.agent import AgentConfig
from octaskly.config.defaults import GROUP
from octaskly.core import events as ev
from octaskly.core.effects import LogLine
from octaskly.core.events import DiskChanged, LoadSampled
from octaskly.core.model.nodes import LoadSample, NodeInfo
from octaskly.core.model.settings import Settings
from octaskly.core.node.node import Node
from octaskly.errors import StoreError
from octaskly.mesh.discovery.discovery import Discovery
from octaskly.mesh.discovery.interfaces import LocalAddress, local_addresses
from octaskly.mesh.links.tcp import tune
from octaskly.mesh.links.transport import Transport
from octaskly.ports import Clock
from octaskly.runner.files.blob_fetcher import Supply, UrlsOf
from octaskly.runner.files.blob_store import Depot
from octaskly.runner.files.workdir import captured
from octaskly.runner.output.output_archive import Archive
from octaskly.runner.pool.pool import Pool
from octaskly.runner.pool.reports import EndedCallback
from octaskly.store import Store
from octaskly.system.clock import SystemClock
from octaskly.system.listeners import EVERYWHERE, bind_ports, port_of
from octaskly.system.load import LoadSampler
from octaskly.system.log import Logger, write_note
from octaskly.trust import Keyring, MeshSecret, MeshTrust, NodeKey, Tokens


class Condition:
    """Looks at the machine; the caller says when, and hands on what is found."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sampler = LoadSampler()
        self.load: LoadSample = self._sampler.sample()
        self._is_disk_failing = False

    def sampled(self, *, are_launchers_failing: bool) -> LoadSampled:
        """Take a sample of the load."""
        # Without a descriptor to spare, the sample before is good enough.
        with contextlib.suppress(OSError):
            self.load = self._sampler.sample()
        return LoadSampled(self.load, are_launchers_failing)

    def disk_changed(self) -> DiskChanged | None:
        """Return whether the disk takes the log, if that is new."""
        why = self._store.shortage()
        is_failing = why is not None
        if is_failing == self._is_disk_failing:
            return None
        self._is_disk_failing = is_failing
        return DiskChanged(is_failing, why or "")


def pool_of(
    config: AgentConfig,
    info: NodeInfo,
    clock: Clock,
    *,
    tls: Callable[[], ssl.SSLContext],
    urls_of: UrlsOf,
    on_ended: EndedCallback,
) -> tuple[Pool, Depot]:
    """Return the runner of a node, and the files that clients leave there.

    Args:
        config: The settings.
        info: The node.
        clock: The machine's clocks.
        tls: Returns how this node shows to others that it is one.
        urls_of: Returns where another node, by name or id, serves.
        on_ended: Called on the event loop with one or more reports.
    """
    depot = Depot(
        config.paths.files,
        clock=clock,
        quota_bytes=config.options.files_quota_bytes,
    )
    archive = Archive(
        config.paths.transcripts,
        outputs_dir=config.paths.outputs,
        bytes_max=config.options.output_cap_bytes,
        quota_bytes=config.options.output_quota_bytes,
        retention_s=config.options.retention_s,
        clock=clock,
    )
    pool = Pool(
        slots=config.slots,
        workdir=config.paths.workdir,
        outputs_dir=config.paths.outputs,
        scratch_dir=config.paths.scratch,
        archive=archive,
        supply=Supply(depot, tls, urls_of),
        node_name=info.name,
        inherited=config.inherited,
        account=config.account,
        kill_grace_s=config.timing.kill_grace_s,
        gpus=info.gpus,
        clock=clock,
        on_ended=on_ended,
    )
    return pool, depot


LAST_WORDS_S: Final = 1.0  #: for what the audit log still lacks at the end


class Parts:
    """Everything that one member consists of."""

    def __init__(
        self,
        config: AgentConfig,
        keyring: Keyring,
        store: Store,
        saved: ev.SavedState,
        clock: SystemClock,
        log: Logger,
        *,
        is_first: bool,
        on_stopped: Callable[[], None],
        on_duplicate: Callable[[], None],
        moves: Moves,
    ) -> None:
        """Bind the ports and build all parts; nothing is served yet.

        Args:
            config: The settings.
            keyring: Where the mesh secret lies, of which there is one.
            store: The log, open; the caller closes it.
            saved: What the log said when it was opened.
            clock: Clock and dice of the agent.
            log: Where events go.
            is_first: This node has just made the mesh: it need not look for others.
            on_stopped: Called once the core has stopped.
            on_duplicate: Called when another agent lives with this node's id.
            moves: Called when this node shall be in another mesh, or in none.

        Raises:
            ConfigError: the node key or a port cannot be used.
        """
        self._config, self._store, self._clock, self._log = config, store, clock, log
        secret = keyring.load()
        key = NodeKey.load_or_create(config.paths.state)
        self._trust, self._tokens = MeshTrust(secret, key), Tokens(secret)
        self._keeper = Keeper(keyring, secret, key.node_id, clock, config.timing, log)
        self._local = local_addresses(config.options.interfaces)
        lan = [address.host for address in self._local]
        self._api_sockets, self._peer_sockets, self._lan_sockets = bind_ports(
            config.options, lan if config.options.interfaces else EVERYWHERE, log
        )
        self._info = self._describe(lasting_name(config.name, saved.name))
        self._condition = Condition(store)
        self._peers_known = len(saved.peers)
        self._work: list[asyncio.Task[None]] = []  #: what goes on until the close
        self._build_core(saved, is_first=is_first, on_stopped=on_stopped)
        self._build_admissions(secret, key, moves)
        self._build_shell(on_duplicate)
        self._build_webhooks(secret)

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Serve: links, API, mDNS, then the first step of the core."""
        self.loop.connect(
            links=self._transport,
            runner=self._pool,
            discovery=self._discovery,
            gateway=self.gateway,
            keeper=self._keeper,
            reads=tasks,
            on_ended=self._webhooks.ended,
        )
        self._admissions.start(tasks)
        self._share_secret(tasks)
        await self._transport.start(tasks, self._peer_sockets)
        await self._api.serve(Site.LOOPBACK, self._api_sockets)
        await self._api.serve(Site.LAN, self._lan_sockets)
        await self._api.start_unix(self._socket_path, group=GROUP)
        self.loop.start()
        self._work += [
            tasks.create_task(self._pool.recorder.tidy()),
            tasks.create_task(self._webhooks.run()),
            tasks.create_task(self._api.auditor.run()),
            tasks.create_task(self.gateway.course.run()),
        ]
        self._dial_seeds(tasks)
        await self._discovery.start(tasks, peers_known=self._peers_known)
        description = self._description()
        write_description(self._config, description)
        self._log.info(
            "agent ready",
            api_url=description["api_url"],
            lan_url=description["lan_url"],
            peer_port=description["peer_port"],
            mesh=description["mesh"],
        )

    def ask_to_stop(self, drain_s: float) -> None:
        """Begin the hand-over and the drain."""
        self.loop.post(ev.StopRequested(drain_s))

    def sample(self) -> None:
        """Take a sample of this machine: its load, and whether its disk has room."""
        is_failing = not self._pool.look_after()
        self.loop.post(self._condition.sampled(are_launchers_failing=is_failing))
        if (changed := self._condition.disk_changed()) is not None:
            self.loop.post(changed)

    def persisted(self, number: int) -> None:
        """Tell the core, and those who listen, that more is on disk."""
        self.loop.handle(ev.Persisted(number))
        self.gateway.waiters.persisted(number)
        self.gateway.feed.committed()

    def failure(self) -> str | None:
        """Return why this node cannot serve, or None."""
        return self._store.failure

    def check(self) -> None:
        """End the node if it cannot keep anything any more, so that it is restarted."""
        if self._store.has_stopped and self.loop.failure is None:
            self.loop.fail(StoreError(self._store.failure or "the writer stopped"))

    async def close(self) -> None:
        """Answer what is in flight, say goodbye, end every tree."""
        with contextlib.suppress(FileNotFoundError):
            self._config.paths.description.unlink()
        for work in self._work:
            work.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._api.auditor.flush()
        self.gateway.close()
        await self._admissions.close()
        await self._api.close()
        self.loop.close()
        await self._discovery.close()
        await self._transport.close()
        await self._pool.close()

    def _share_secret(self, tasks: asyncio.TaskGroup) -> None:
        """Let all parts that use the mesh secret hear when it is renewed."""
        self._discovery.end(self._keeper.secret.ended)
        self._keeper.connect(
            rotation=self._node.rotation,
            tickets=self.gateway.tickets,
            post=self.loop.post,
            send=self._transport.send,
            tasks=tasks,
            users=(
                self._trust.renew,
                self._tokens.renew,
                lambda _: self._api.forward_as(self._trust.lan_client_context()),
                lambda s: self._api.expel(s.denied, is_settled=len(s.accepted) == 1),
                lambda secret: self._discovery.end(secret.ended),
                lambda secret: self._poster.renew(secret.webhook_key()),
            ),
        )

    # --- building ------------------------------------------------------------------

    def _describe(self, name: str) -> NodeInfo:
        return node_info(
            self._config,
            name,
            id=self._trust.node_id,
            boot=self._clock.hex_digits(16),
            peer_port=port_of(self._peer_sockets),
            lan_port=port_of(self._lan_sockets),
            addresses=tuple(address.host for address in self._local),
        )

    def _build_core(
        self, saved: ev.SavedState, *, is_first: bool, on_stopped: Callable[[], None]
    ) -> None:
        config, name = self._config, self._info.name
        self._socket_path = config.paths.socket_of(name)
        timing = config.timing
        if is_first:
            timing = replace(timing, discovery_alone_s=0.0)
        settings = Settings(
            node=self._info,
            timing=timing,
            limits=config.limits,
            is_strict=config.is_strict,
        )
        self._node = Node(settings, replace(saved, keys=self._keeper.secret.keys))
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
            captured=lambda task, attempt, path: captured(
                config.paths.outputs, task, attempt, path
            ),
            # The pool is made later.
            pieces=lambda *what, **how: self._pool.recorder.pieces(*what, **how),  # noqa: PLW0108
            sample=lambda: self._condition.load,
            fitness=Fitness(self.failure, self._store.is_room, self._keeper.trouble),
            signer=self._tokens,
            names={**dict(saved.names), self._info.id: name},
            node=self.loop.node,
            queue_max=config.options.queue_max,
        )

    def _build_shell(self, on_duplicate: Callable[[], None]) -> None:
        config, trust = self._config, self._trust
        self._pool, self._depot = pool_of(
            config,
            self._info,
            self._clock,
            tls=trust.lan_client_context,
            urls_of=self.gateway.urls_of,
            on_ended=lambda reports: self.loop.handle(ev.AttemptsEnded(reports)),
        )
        self._transport = Transport(
            trust=trust,
            limits=config.limits,
            clock=self._clock,
            hello=lambda: self._node.hello(self._clock.now()),
            on_event=self.loop.post,
            on_note=self._note,
            on_duplicate=on_duplicate,
            on_broken=self.gateway.view.note_broken,
            progress=lambda: self._node.progress,
            bounds=config.options,
        )
        self._discovery = Discovery(
            node=self._info,
            mesh_id=trust.mesh_id,
            clock=self._clock,
            on_event=self.loop.post,
            on_note=self._note,
            interfaces=config.options.interfaces,
            on_other_mesh=lambda mesh: self._log.warning(
                "another mesh is in sight",
                mesh=mesh,
                hint="octaskly join    makes this node a member of it",
            ),
            on_addresses=self._addresses_changed,
            on_clone=partial(self._transport.dial, None),
            on_ended=self._keeper.sighted,
        )
        self._metrics = Metrics(
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

    def _build_admissions(self, secret: MeshSecret, key: NodeKey, moves: Moves) -> None:
        self._admissions = admissions_of_member(
            self._config,
            secret,
            key,
            node=self._info,
            gateway=self.gateway,
            store=self._store,
            clock=self._clock,
            log=self._log,
            moves=moves,
        )

    def _build_webhooks(self, secret: MeshSecret) -> None:
        self._poster = Poster(secret.webhook_key())
        self._webhooks = Webhooks(
            self._store,
            self.gateway.view,
            self._poster,
            self._clock,
            self._log,
            self.loop.post,
            self.gateway.when_safe,
        )

    def _build_api(self) -> ApiServer:
        config, trust = self._config, self._trust
        hosts = {socket.gethostname(), f"{socket.gethostname().split('.')[0]}.local"}
        return ApiServer(
            self.gateway,
            verify=self.gateway.tokens.verify,
            clock=self._clock,
            node_name=self._info.name,
            on_fault=self._fault,
            cors_origins=config.options.cors_origins,
            allow_hosts=(*config.options.allow_hosts, *hosts),
            lan_ssl=trust.lan_server_context(
                [*hosts, *config.options.allow_hosts],
                [address.host for address in self._local],
            ),
            forward_ssl=trust.lan_client_context(),
            peer_node_id=trust.admitted_node_id,
            tune=tune,
            rates=config.options.rates,
            bounds=config.options,
            deadlines=Deadlines(
                header_s=config.options.header_s,
                body_s=config.options.body_s,
                stall_s=config.options.stall_s,
            ),
            admissions=self._admissions,
            describe=self._description,
            rotations=self._keeper,
            files=self._depot,
            report=self._metrics.report,
        )

    def _description(self) -> dict[str, Any]:
        return describe(
            self._config,
            self._info,
            mesh=self._trust.mesh_id,
            api_port=port_of(self._api_sockets),
        )

    # --- callbacks -----------------------------------------------------------------

    def _note(self, note: LogLine) -> None:
        write_note(self._log, self.gateway.view.told(note))

    def _fault(self, request_id: str, error: BaseException) -> None:
        self._log.error("request failed", error=repr(error), request=request_id)

    def _addresses_changed(self, addresses: tuple[LocalAddress, ...]) -> None:
        self._local = addresses
        hosts = tuple(address.host for address in addresses)
        self._log.info("addresses changed", addresses=list(hosts))
        self.loop.post(ev.AddressesChanged(hosts))

    def _dial_seeds(self, tasks: asyncio.TaskGroup) -> None:
        for host, port in self._config.seeds:
            tasks.create_task(self._dial_seed(host, port))

    async def _dial_seed(self, host: str, port: int) -> None:
        """Look a `--join` name up and hand it to the core as a hint."""
        addresses = await addresses_of(host, port, self._log)
        if addresses:
            self.loop.post(ev.PeersDiscovered((ev.PeerHint(None, addresses),)))
