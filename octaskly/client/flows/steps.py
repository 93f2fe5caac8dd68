"""The steps of flows: every kind of I/O that a flow can ask its driver for.

A flow is a generator. It yields a step and receives the result of that step; if the
step fails, the driver throws the error into the flow. The return value of the flow is
the result for the caller. Waiting, retrying and resuming are thus written once, and a
driver only implements seven steps.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import GeneratorType
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from octaskly.client.flows.rest_calls import Call

T = TypeVar("T")


class SendRequest(msgspec.Struct, frozen=True):
    """Send a request; the result is its `Response`."""

    call: Call
    timeout_s: float


class OpenStream(msgspec.Struct, frozen=True):
    """Open a stream; the result is the head of the response, or the refusal."""

    call: Call
    timeout_s: float


class ReadStream(msgspec.Struct, frozen=True):
    """Read from the stream; the result is the next bytes, b"" at its end."""

    timeout_s: float


class CloseStream(msgspec.Struct, frozen=True):
    """Close the stream, if one is open."""


class Sleep(msgspec.Struct, frozen=True):
    """Wait."""

    seconds: float


class RunBlocking(msgspec.Struct, frozen=True):
    """Call a function that reads or writes files; the result is what it returns."""

    function: Callable[[], object]


class Emit(msgspec.Struct, Generic[T], frozen=True):
    """Yield an item to the caller, who may pause the flow for any time."""

    item: T


Step: TypeAlias = (
    SendRequest | OpenStream | ReadStream | CloseStream | Sleep | RunBlocking
)
Flow: TypeAlias = Generator[Step, Any, T]
EmittingFlow: TypeAlias = Generator[Step | Emit[T], Any, None]


def is_finished(flow: Flow[Any] | EmittingFlow[Any]) -> bool:
    """Return True if a flow has returned or raised."""
    assert isinstance(flow, GeneratorType)
    return flow.gi_frame is None
