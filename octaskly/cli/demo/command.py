"""`octaskly demo`: three agents find each other and share a real job.

Every module of Python's standard library is compressed with `gzip -9`, one task
each; every output is fetched through the API, decompressed and compared.
"""

from __future__ import annotations

import contextlib
import gzip
import shlex
import shutil
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from octaskly import Client, Draft, Task
from octaskly.cli.demo.agents import (
    DemoAgent,
    run_agents,
    signals_as_interrupts,
    wait_until_formed,
)
from octaskly.cli.output.render import print_table
from octaskly.cli.output.terminal import (
    flush,
    is_terminal,
    print_line,
    print_text,
    progress_bar,
)
from octaskly.errors import MeshError

NAMES = ("ash", "birch", "cedar")
WORK_S_MAX = 120.0
POLL_S = 0.2
PLAIN_S = 1.0  #: between two progress lines where stdout is no terminal
LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})
NEXT = """\
next:  {0} agent               start a node of your own, here and on other machines
       {0} run -- hostname     and run something on whichever is free"""


@click.command(epilog="Example: octaskly demo --modules 100")
@click.option(
    "--modules",
    "modules_max",
    type=click.IntRange(1),
    metavar="N",
    help="Compress at most N modules.",
)
def demo(modules_max: int | None) -> None:
    """Watch three agents on this machine share a real job.

    Uses only the loopback interface, ends by itself and cleans up.
    """
    if shutil.which("gzip") is None:
        raise MeshError("the demo compresses with gzip, which is not installed")
    with (
        signals_as_interrupts(),
        tempfile.TemporaryDirectory(prefix="octaskly-demo-") as name,
    ):
        folder = Path(name)
        workdir = folder / "work"
        modules = _copy_modules(workdir, modules_max)
        _print(f"Input: {len(modules)} modules of Python's standard library.")
        _print("Starting three agents: separate processes, loopback only, free ports.")
        started_at = time.monotonic()
        with run_agents(folder, NAMES, workdir) as started:
            _run_demo(started, workdir, modules, started_at)
        _print("The agents are stopped; nothing is left behind.")
    print_line()
    # `make demo` runs a program that is not on the path.
    program = "octaskly" if shutil.which("octaskly") else sys.argv[0]
    print_text(NEXT.format(program))


def _run_demo(
    started: Sequence[DemoAgent],
    workdir: Path,
    modules: Sequence[str],
    started_at: float,
) -> None:
    nodes = wait_until_formed(started)
    dispatcher = next(node.name for node in nodes if node.role == "dispatcher")
    _print(
        f"They found each other by mDNS in {time.monotonic() - started_at:.1f} s "
        f"and elected {dispatcher} as dispatcher."
    )
    front = next(agent for agent in started if agent.name != dispatcher)
    _print(f"Submitting one task per module through {front.name}, which forwards them.")
    with front.client() as client:
        begun_at = time.monotonic()
        accepted = client.submit_many([_draft(module) for module in modules])
        _wait(client, len(accepted))
        work_s = time.monotonic() - begun_at
        tasks = list(client.tasks())
    _raise_on_failures(tasks)
    packed = _verify(started, workdir, accepted, modules)
    original = sum((workdir / module).stat().st_size for module in modules)
    _print(
        f"All {len(modules)} outputs were fetched and decompress correctly: "
        f"{original / 1e6:.1f} MB became {packed / 1e6:.1f} MB."
    )
    _summary(tasks, work_s)


def _copy_modules(workdir: Path, modules_max: int | None) -> list[str]:
    """Copy the modules below the worker directory; return their paths there."""
    library = Path(sysconfig.get_path("stdlib"))
    found = sorted(
        path.relative_to(library)
        for path in library.rglob("*.py")
        if not LEFT_OUT.intersection(path.relative_to(library).parts)
    )[:modules_max]
    for path in found:
        for top in ("lib", "packed"):
            (workdir / top / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library / path, workdir / "lib" / path)
    return [f"lib/{path}" for path in found]


def _output_path(module: str) -> str:
    return f"packed/{module.removeprefix('lib/')}.gz"


def _draft(module: str) -> Draft:
    target = _output_path(module)
    return Draft(
        command=f"gzip -9 -n -c {shlex.quote(module)} > {shlex.quote(target)}",
        timeout=60,
        needs=[module],
        outputs=[target],
    )


def _wait(client: Client, count: int) -> None:
    """Show progress until all tasks have ended."""
    deadline = time.monotonic() + WORK_S_MAX
    with _bar("compressing", count) as show:
        while time.monotonic() < deadline:
            counts = client.stats().tasks
            done = counts.completed + counts.failed + counts.cancelled
            show(done)
            if done >= count:
                return
            time.sleep(POLL_S)
    raise MeshError(f"the tasks did not end within {WORK_S_MAX:.0f} s")


def _raise_on_failures(tasks: Sequence[Task]) -> None:
    failed = [task for task in tasks if task.status != "completed"]
    if failed:
        first = failed[0]
        raise MeshError(
            f"{len(failed)} of {len(tasks)} tasks failed; the first: {first.command}"
            f" ({first.reason}, exit code {first.exit_code}; {first.detail})"
        )


def _verify(
    started: Sequence[DemoAgent],
    workdir: Path,
    accepted: Sequence[Task],
    modules: Sequence[str],
) -> int:
    """Fetch and compare every output, from the nodes in turn; return the total size."""
    fetched_bytes = 0
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(agent.client()) for agent in started]
        show = stack.enter_context(_bar("fetching and comparing", len(modules)))
        for index, (task, module) in enumerate(zip(accepted, modules, strict=True)):
            client = clients[index % len(clients)]
            output = b"".join(client.output(task, _output_path(module)))
            fetched_bytes += len(output)
            if gzip.decompress(output) != (workdir / module).read_bytes():
                raise MeshError(
                    f"the output of {task.id} does not decompress to {module}"
                )
            show(index + 1)
    return fetched_bytes


def _summary(tasks: Sequence[Task], work_s: float) -> None:
    shares = Counter(task.worker_id or "?" for task in tasks)
    print_line()
    print_table(
        ("NODE", "TASKS", "SHARE"),
        [
            (node, str(count), f"{100 * count / len(tasks):.0f}%")
            for node, count in sorted(shares.items())
        ],
        state_column=0,
    )
    rate = len(tasks) / work_s
    print_line()
    print_line(f"{len(tasks)} tasks in {work_s:.1f} s: {rate:.0f} tasks per second.")


@contextlib.contextmanager
def _bar(title: str, count: int) -> Iterator[Callable[[int], None]]:
    """Show progress: a bar on a terminal, elsewhere one line per `PLAIN_S`."""
    if is_terminal():
        with progress_bar(title, count) as show_bar:
            yield show_bar
        return
    shown_at = -PLAIN_S

    def show(done: int) -> None:
        nonlocal shown_at
        now = time.monotonic()
        if now - shown_at >= PLAIN_S or done >= count:
            shown_at = now
            _print(f"  {title}: {done}/{count}")

    yield show


def _print(text: str) -> None:
    print_line(text)
    flush()
