"""A client of server-sent events for tests, with every field of the standard."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.agents import Agent


@dataclass
class Event:
    """One event as a browser would dispatch it."""

    name: str
    data: Any
    id: str  #: the last id given, by this event or before


class Stream:
    """An open stream; iterating over it ends with the stream."""

    def __init__(self, connection: http.client.HTTPConnection, last_id: str) -> None:
        self.last_id = last_id
        self._response = connection.getresponse()
        self.status = self._response.status

    def __iter__(self) -> Iterator[Event]:
        name, data = "message", ""
        with contextlib.suppress(http.client.HTTPException, ConnectionError):
            while line := self._response.readline().decode():
                field, _, value = line.rstrip("\n").partition(": ")
                if line == "\n":
                    if data:
                        yield Event(name, json.loads(data), self.last_id)
                    name, data = "message", ""
                elif field == "id":
                    self.last_id = value
                elif field == "event":
                    name = value
                elif field == "data":
                    data += value

    def until(self, task: str, status: str) -> list[Event]:
        """Return the events up to the one in which a task enters a state."""
        found: list[Event] = []
        for event in self:
            found.append(event)
            if (event.data.get("id"), event.data.get("status")) == (task, status):
                return found
        raise AssertionError(f"{task} was not {status} when the stream ended: {found}")


@contextlib.contextmanager
def events(agent: Agent, *, last_id: str = "", query: str = "") -> Iterator[Stream]:
    """Open the stream of an agent's events, through its local socket."""
    with stream(agent, f"/api/v1/events{query}", last_id=last_id) as opened:
        yield opened


@contextlib.contextmanager
def stream(agent: Agent, path: str, *, last_id: str = "") -> Iterator[Stream]:
    """Open a stream of an agent, through its local socket."""
    with contextlib.closing(agent.connection()) as connection:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        connection.request("GET", path, headers=headers)
        yield Stream(connection, last_id)


def tasks_in(found: list[Event]) -> list[tuple[str, str]]:
    """Return the pairs of task and state in events."""
    return [(e.data["id"], e.data["status"]) for e in found if e.name == "task"]
