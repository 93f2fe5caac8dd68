"""What a flow asks of the client that runs it: all input and output there is.

A flow is a generator. It yields a step, is sent what came of it, and returns what the
caller wants; where a step fails, the error is thrown into it. So waiting, repeating and
resuming are written once, and a client is no more than a way to perform six steps.
"""

from __future__ import annotations

from collections.abc import Generator
from types import GeneratorType
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from octaskly.client.flows.api_calls import Call

T = TypeVar("T")


class SendRequest(msgspec.Struct, frozen=True):
    """Send a request; comes to its `Response`."""

    call: Call
    timeout_s: float


class OpenStream(msgspec.Struct, frozen=True):
    """Send a request whose answer is a stream; comes to its head, or the refusal."""

    call: Call
    timeout_s: float


class ReadStream(msgspec.Struct, frozen=True):
    """Comes to the next bytes of the stream, none at its end."""

    timeout_s: float


class CloseStream(msgspec.Struct, frozen=True):
    """Close the stream, if one is open."""


class Sleep(msgspec.Struct, frozen=True):
    """Let time pass."""

    seconds: float


class Emit(msgspec.Struct, Generic[T], frozen=True):
    """Hand an item to the caller, who may take its time."""

    item: T


Step: TypeAlias = SendRequest | OpenStream | ReadStream | CloseStream | Sleep
Flow: TypeAlias = Generator[Step, Any, T]
EmittingFlow: TypeAlias = Generator[Step | Emit[T], Any, None]


def is_finished(flow: Flow[Any] | EmittingFlow[Any]) -> bool:
    """Whether a flow has returned or raised."""
    assert isinstance(flow, GeneratorType)
    return flow.gi_frame is None
