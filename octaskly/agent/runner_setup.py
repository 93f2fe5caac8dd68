"""The runner of a member or of a visitor, with the stores of its files."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from octaskly.config.agent import AgentConfig
from octaskly.core.model.nodes import NodeInfo
from octaskly.ports.store import Clock
from octaskly.runner.blobs.blob_fetcher import BlobFetcher, HoldersOf
from octaskly.runner.blobs.blob_store import BlobStore
from octaskly.runner.blobs.lenders import Lenders
from octaskly.runner.files.output_copies import (
    CopiedOutputs,
    CopyHolders,
    OutputCopies,
)
from octaskly.runner.output.output_archive import OutputArchive
from octaskly.runner.pool.pool import Pool
from octaskly.runner.pool.report_queue import EndedCallback


def build_pool(
    config: AgentConfig,
    info: NodeInfo,
    clock: Clock,
    *,
    tls: Callable[[], ssl.SSLContext],
    holders_of: HoldersOf,
    on_wrong_copy: Callable[[str, str], None],
    copy_holders: CopyHolders,
    on_ended: EndedCallback,
) -> tuple[Pool, BlobFetcher, OutputArchive, OutputCopies]:
    """Return the runner of a node, the fetcher of its files, its outputs, their copies.

    Args:
        config: The settings.
        info: The node.
        clock: The machine's clocks.
        tls: Returns the client TLS context of this node.
        holders_of: Returns the other nodes that may have a file.
        on_wrong_copy: See `BlobFetcher`.
        copy_holders: Returns the other nodes for copies of outputs, in their order.
        on_ended: Called on the event loop with one or more reports.
    """
    blob_store, archive = build_file_stores(config, clock)
    own, lenders = (info.id, info.name), Lenders(blob_store, clock)
    blob_fetcher = BlobFetcher(blob_store, tls, holders_of, own, lenders, on_wrong_copy)
    copies = OutputCopies(
        archive,
        blob_fetcher,
        node=info.id,
        copy_holders=copy_holders,
        is_strict=config.is_strict,
    )
    pool = build_runner(config, info, clock, archive, blob_fetcher, copies, on_ended)
    return pool, blob_fetcher, archive, copies


def build_runner(
    config: AgentConfig,
    info: NodeInfo,
    clock: Clock,
    archive: OutputArchive,
    blob_fetcher: BlobFetcher,
    copies: CopiedOutputs,
    on_ended: EndedCallback,
) -> Pool:
    """Return the runner of a member or of a visitor."""
    return Pool(
        slots=config.slots,
        workdir=config.paths.workdir,
        scratch_dir=config.paths.scratch,
        archive=archive,
        blob_fetcher=blob_fetcher,
        output_copies=copies,
        node_name=info.name,
        inherited=config.inherited,
        account=config.account,
        kill_grace_s=config.timing.kill_grace_s,
        gpus=info.gpus,
        clock=clock,
        on_ended=on_ended,
    )


def build_file_stores(
    config: AgentConfig, clock: Clock
) -> tuple[BlobStore, OutputArchive]:
    """Return the store of files that tasks need, and that of outputs."""
    archive = OutputArchive(
        config.paths.transcripts,
        outputs_dir=config.paths.outputs,
        bytes_max=config.options.output_cap_bytes,
        quota_bytes=config.options.output_quota_bytes,
        retention_s=config.options.retention_s,
        clock=clock,
    )
    blob_store = BlobStore(
        config.paths.files,
        clock=clock,
        quota_bytes=config.options.files_quota_bytes,
        captured=archive.captured.contents,
    )
    return blob_store, archive
