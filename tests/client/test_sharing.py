"""Threads, processes and event loops that share a client; closed clients."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import octaskly
from tests.client.kinds import Open
from tests.support.agents import Agent, until


def test_threads_can_share_a_client(agents: list[Agent]) -> None:
    """Each gets its own answer, though some wait and some read."""
    with octaskly.Client(state_dir=agents[1].state) as mesh:

        def echo(n: int) -> str | None:
            task = mesh.submit(f"echo {n}")
            return mesh.wait(task).stdout if n % 2 else mesh.run(f"echo {n}").stdout

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(echo, range(24)))

    assert results == [f"{n}\n" for n in range(24)]


async def test_asyncio_tasks_can_share_a_client(agents: list[Agent]) -> None:
    """Any number at once, and no connection is left when the client closes."""
    async with octaskly.AsyncClient(state_dir=agents[1].state) as mesh:

        async def echo(n: int) -> str | None:
            return (await mesh.run(f"echo {n}")).stdout

        async with asyncio.TaskGroup() as group:
            results = [group.create_task(echo(n)) for n in range(16)]

    assert [each.result() for each in results] == [f"{n}\n" for n in range(16)]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelled_call_stops_and_cancels_its_tasks(
    agents: list[Agent],
) -> None:
    """No other program knows of these tasks; the client stays usable."""
    async with octaskly.AsyncClient(state_dir=agents[1].state) as mesh:

        async def follow() -> None:
            async for _ in mesh.map("sleep 60 # {}", "ab", name="cancelled map"):
                pass

        async with asyncio.TaskGroup() as group:
            working = [
                group.create_task(mesh.run("sleep 60", name="cancelled run")),
                group.create_task(follow()),
            ]
            begun: set[str | None] = set()
            async for event in mesh.events(types=["task"]):
                begun.add((await mesh.task(event.data["id"])).name)
                if begun >= {"cancelled run", "cancelled map"}:
                    break
            for each in working:
                each.cancel()

        left = [task async for task in mesh.tasks() if task.name in begun]
        for task in left:
            assert (await mesh.wait(task, deadline_s=60)).status == "cancelled"


async def test_async_client_belongs_to_one_loop(agents: list[Agent]) -> None:
    """Its connections belong to that loop; another loop would wait for ever."""
    async with octaskly.AsyncClient(state_dir=agents[1].state) as mesh:
        await mesh.nodes()
        with pytest.raises(octaskly.Closed, match="another event loop"):
            await asyncio.to_thread(asyncio.run, mesh.nodes())


def test_ctrl_c_in_a_run_cancels_it(agents: list[Agent]) -> None:
    """As in a shell, the command ends with the program that waits for it."""
    with octaskly.Client(state_dir=agents[1].state) as mesh:
        main = threading.main_thread().ident
        assert main is not None

        def interrupt() -> None:
            path = "/api/v1/tasks?name=interrupted&status=running"
            until(lambda: agents[0].call("GET", path)[1].get("tasks"), "it runs")
            signal.pthread_kill(main, signal.SIGINT)

        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            mesh.run("sleep 60", name="interrupted")
        interrupting.join()

        left = [task for task in mesh.tasks() if task.name == "interrupted"][-1]
        assert mesh.wait(left, deadline_s=60).status == "cancelled"


def test_closed_client_raises_an_error(client: octaskly.Client) -> None:
    """Before and after its first use; submitted tasks go on."""
    client.nodes()
    client.close()

    for use in (
        client.nodes,
        lambda: client.submit("true"),
        lambda: next(client.logs("x")),
    ):
        with pytest.raises(octaskly.Closed, match="this client is closed"):
            use()
    client.close()


FORKING = """
import os, sys
import octaskly

mesh = octaskly.Client(state_dir=sys.argv[1])
mesh.nodes()
news = mesh.events()
next(news), next(news), next(news)
child = os.fork()
ended = mesh.run(f"echo {'parent' if child else 'child'}")
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    try:
        next(news)
    except octaskly.Closed as error:
        print(error.message, flush=True)
    os._exit(0 if ended.stdout == "child\\n" else 1)
print(ended.stdout, next(event.kind for event in news if event.kind != "node"))
"""


def test_forked_process_leaves_connections_to_the_parent(
    agents: list[Agent],
) -> None:
    """Neither reads the answers of the other."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(agents[1].state)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "this stream belongs to the process that opened it",
        "parent",
        " task",
    ]


def test_invalid_task_is_refused_before_it_is_sent(
    client: octaskly.Client, open_client: Open
) -> None:
    """The error names the field; the node or the client finds it."""
    refused: dict[str, Callable[[], object]] = {
        "$.command": lambda: client.submit("a\0b"),
        "$.timeout": lambda: client.submit("true", timeout="soon"),  # type: ignore[arg-type]
        "tries": lambda: client.submit("true", tries=3),  # type: ignore[call-arg]
        "needs": lambda: client.submit("true", needs=[object()]),  # type: ignore[list-item]
        "includes_ignored": lambda: client.submit("true", includes_ignored=True),
        "inputs": lambda: client.submit("true", inputs=[object()]),  # type: ignore[list-item]
        "command": lambda: client.submit_many(["true"] * 10_001),
        "id": lambda: client.task("no task/ä"),
    }
    for field, ask in refused.items():
        with pytest.raises(octaskly.Invalid) as caught:
            ask()
        assert (caught.value.field, bool(caught.value.hint)) == (field, True)


@pytest.mark.parametrize("text", ["\udcff", "a\ud800"])
def test_text_with_surrogates_is_refused(client: octaskly.Client, text: str) -> None:
    """Python represents non-UTF-8 file names like that; JSON cannot."""
    for ask in (
        lambda: client.submit(text),
        lambda: client.submit("true", name=text),
        lambda: client.submit("true", stdin=text),
        lambda: client.submit_many([text]),
        lambda: client.array("true", [text]),
        lambda: next(client.map("true", [text])),
    ):
        with pytest.raises(octaskly.Invalid, match="lone surrogate"):
            ask()
    with pytest.raises(octaskly.Invalid):
        client.cancel(text)
