"""What runs attempts on this node, made as its settings say."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from octaskly.config.agent import AgentConfig
from octaskly.core.model import NodeInfo
from octaskly.ports import Clock
from octaskly.runner.archive import Archive
from octaskly.runner.delivery import EndedCallback
from octaskly.runner.depot import Depot
from octaskly.runner.pool import Pool
from octaskly.runner.supply import Supply, UrlsOf


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
