"""Webhooks of whole agents, through a failover."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import sqlite3
from pathlib import Path
from typing import Any

from octaskly.trust.mesh_secret import load_secret
from tests.support.agents import (
    Agent,
    finished,
    replicas,
    roles_of,
    running,
    submit,
    until,
    until_nodes,
)
from tests.support.receiver import is_signed, receiver


async def _in_thread(call: Any, *args: Any, **more: Any) -> Any:
    """Run a blocking call while the receiver serves."""
    return await asyncio.to_thread(functools.partial(call, *args, **more))


async def test_an_agent_sends_a_webhook_at_the_end_of_a_task(tmp_path: Path) -> None:
    """At once, signed with the key of the mesh's secret."""
    with running(tmp_path, "solo") as (agent,):
        await _in_thread(until_nodes, agent, 1)
        async with receiver() as server:
            task = await _in_thread(
                submit, agent, "echo secret; exit 3", notify_url=server.url
            )
            await server.until(1)
            shown = await _in_thread(finished, agent, task)

    key = load_secret(tmp_path / "mesh.key").webhook_key()
    _, headers, body = server.got[0]
    assert is_signed(headers, body, key)
    payload = server.bodies()[0]
    assert payload["type"] == "task.failed"
    assert (
        payload["data"] | {"id": task, "exit_code": 3, "worker_id": "solo"}
        == payload["data"]
    )
    assert b"secret" not in body
    assert shown["notify_url"] == server.url
    assert len(base64.b64encode(key)) == 44


def pending_webhooks(agent: Agent) -> list[str]:
    """Return the ended tasks with pending webhooks, from the agent's log."""
    log = f"file:{agent.state}/log.db?mode=ro"
    with contextlib.closing(sqlite3.connect(log, uri=True)) as db:
        rows = db.execute("SELECT id FROM tasks WHERE notify = 1 AND state > 1")
        return [task for (task,) in rows]


def _kill_the_first(ana: Agent, bo: Agent) -> None:
    ana.process.kill()
    until(
        lambda: roles_of(bo).get("bo") == "dispatcher",
        "bo is dispatcher",
    )


async def test_the_next_dispatcher_sends_pending_webhooks(
    tmp_path: Path,
) -> None:
    """And repeats none of the last one's: the log records them."""
    with running(tmp_path, "ana") as (ana,):
        await _in_thread(until_nodes, ana, 1)
        with running(tmp_path, "bo") as (bo,):
            await _in_thread(until_nodes, ana, 2)
            await _in_thread(until, lambda: replicas(ana) == 2, "a copy")
            async with receiver() as server, receiver() as other:
                server.answer = b"HTTP/1.1 503 Later\r\n\r\n"
                heard = await _in_thread(submit, ana, "true", notify_url=other.url)
                missed = await _in_thread(submit, ana, "true", notify_url=server.url)
                await server.until(1)
                await other.until(1)
                for task in (heard, missed):
                    await _in_thread(finished, ana, task)
                await _in_thread(
                    until,
                    lambda: pending_webhooks(bo) == [missed],
                    "bo has the delivery in its log",
                )
                server.got.clear()
                server.answer = b"HTTP/1.1 204 No\r\n\r\n"
                await _in_thread(_kill_the_first, ana, bo)
                await server.until(1)

    assert {headers["webhook-id"] for _, headers, _ in server.got} == {missed}
    assert [headers["webhook-id"] for _, headers, _ in other.got] == [heard]
