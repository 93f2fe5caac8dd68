"""`octaskly agent`: a node in the foreground. Owns the flags, and no more."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from octaskly.cli.render import Bytes, Duration
from octaskly.config import (
    DRAIN_S,
    DRAIN_S_MAX,
    DURABILITIES,
    KILL_GRACE_S,
    KILL_GRACE_S_MAX,
    OUTPUT_CAP_BYTES,
    QUEUE_MAX,
    RETAINED_TASKS,
    RETENTION_S,
    AgentOptions,
)

PORT = click.IntRange(0, 65535)
FOLDER = click.Path(path_type=Path)


@click.command(epilog="Example: octaskly agent --slots 4 --label room=office")
@click.option(
    "--name",
    metavar="NAME",
    help="Name of this node in the mesh (default: the machine's).",
)
@click.option("--state-dir", type=FOLDER, help="Where log, results and identity lie.")
@click.option("--secret-file", type=FOLDER, help="The mesh secret; made if missing.")
@click.option("--api-port", type=PORT, help="HTTP API on this machine (3000).")
@click.option("--peer-port", type=PORT, help="Other nodes (7878).")
@click.option("--lan-port", type=PORT, help="HTTPS API for the LAN (3443).")
@click.option(
    "--interface",
    "interfaces",
    multiple=True,
    metavar="NAME",
    help="Use only this network interface. Repeatable.",
)
@click.option(
    "--join",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Dial this node, where multicast does not reach. Repeatable.",
)
@click.option("--slots", type=int, help="Tasks at a time (default: one per CPU).")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="KEY=VALUE",
    help="Tasks can ask for nodes that have it. Repeatable.",
)
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    metavar="GPU",
    help="A GPU for tasks (default: those of NVIDIA's driver). Repeatable.",
)
@click.option("--workdir", type=FOLDER, help="Where tasks run.")
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Web pages from here may use the API. Repeatable.",
)
@click.option(
    "--allow-host",
    "allow_hosts",
    multiple=True,
    metavar="NAME",
    help="The API may be called by this host name too. Repeatable.",
)
@click.option(
    "--electable/--no-electable",
    default=True,
    help="Whether this node may become dispatcher; if none may, one does all the same.",
)
@click.option(
    "--durability",
    type=click.Choice(DURABILITIES),
    help="strict: as dispatcher, accept nothing that only one disk holds (normal).",
)
@click.option(
    "--retention",
    "retention_s",
    type=Duration(),
    default=RETENTION_S,
    metavar="T",
    help="As dispatcher, forget what ended so long ago (7d).",
)
@click.option(
    "--retained-tasks",
    type=click.IntRange(min=1),
    default=RETAINED_TASKS,
    metavar="N",
    help="As dispatcher, forget the oldest of more ended tasks (2000000).",
)
@click.option(
    "--retained-bytes",
    type=Bytes(),
    metavar="SIZE",
    help="The same while the log is larger than this (8G, at most 10% of the disk).",
)
@click.option(
    "--queue-max",
    type=click.IntRange(min=1),
    default=QUEUE_MAX,
    metavar="N",
    help="As dispatcher, let so many tasks wait and refuse more (5000000).",
)
@click.option(
    "--output-cap",
    "output_cap_bytes",
    type=Bytes(),
    default=OUTPUT_CAP_BYTES,
    metavar="SIZE",
    help="Of what a task writes, keep so much on the disk of its worker (64M).",
)
@click.option(
    "--output-quota",
    "output_quota_bytes",
    type=Bytes(),
    metavar="SIZE",
    help="Of all tasks together; the oldest goes first (10G, at most 10% of the disk).",
)
@click.option(
    "--drain",
    "drain_s",
    type=click.IntRange(0, DRAIN_S_MAX),
    default=DRAIN_S,
    metavar="SECONDS",
    help="How long running tasks may take to end after SIGTERM (30).",
)
@click.option(
    "--kill-grace",
    "kill_grace_s",
    type=click.IntRange(0, KILL_GRACE_S_MAX),
    default=KILL_GRACE_S,
    metavar="SECONDS",
    help="From SIGTERM to SIGKILL for tasks that are ended (10).",
)
@click.option(
    "--log-format",
    type=click.Choice(("auto", "console", "json", "journal")),
    default="auto",
    show_default=True,
)
@click.option(
    "--log-level",
    type=click.Choice(("debug", "info", "warning", "error")),
    default="info",
    show_default=True,
)
def agent(**flags: Any) -> int:
    """Run a node of the mesh in the foreground; Ctrl-C ends it cleanly.

    With nothing said it finds the other nodes of this LAN by itself.
    """
    # Imported here: the agent brings in every library that commands do without.
    main = importlib.import_module("octaskly.agent.main")
    code: int = main.run(AgentOptions(**flags))
    return code
