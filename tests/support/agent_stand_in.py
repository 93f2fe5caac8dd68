"""A process that runs commands in a pool, like an agent, until it is killed.

Usage: agent_stand_in.py FOLDER SLOTS WITH_CGROUPS COMMAND...; prints its launchers.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from octaskly.core.model.ids import AttemptId, StreamId, TaskId
from octaskly.core.model.tasks import TaskSpec
from octaskly.runner.pool.pool import Pool
from octaskly.runner.processes.proc_tree import become_subreaper, children_of
from tests.support.pooling import MachineClock, archive_in, supply_in


async def main() -> None:
    """Start all commands and sleep."""
    folder, slots, with_cgroups, *commands = sys.argv[1:]
    become_subreaper()
    pool = Pool(
        slots=int(slots),
        workdir=Path(folder),
        scratch_dir=Path(folder) / "scratch",
        archive=archive_in(Path(folder)),
        blob_fetcher=supply_in(Path(folder)),
        node_name="stand-in",
        clock=MachineClock(),
        on_ended=lambda reports: print(reports, flush=True),
        with_cgroups=with_cgroups == "yes",
    )
    pool.start_attempts(
        [
            (
                AttemptId(1, StreamId(1), n, 1),
                TaskSpec(id=TaskId(f"t{n}"), command=text),
            )
            for n, text in enumerate(commands, 1)
        ]
    )
    print(*children_of(os.getpid()), flush=True)
    for _ in range(600):
        await asyncio.sleep(0.1)
        pool.check_launchers()


asyncio.run(main())
