"""When a node tells its core that its API does not serve other nodes."""

from __future__ import annotations

from octaskly.agent.health import FAILING_S, ApiProbe
from octaskly.core.events import ApiChanged
from octaskly.core.model.ids import Moment


class Api:
    """An API whose probes take a set time and end as set."""

    def __init__(self) -> None:
        self.mono_s = 100.0
        self.failure: str | None = None
        self.probe_s = 0.0
        self.posted: list[ApiChanged] = []
        self.watch = ApiProbe(self.probe, lambda: True, self.posted.append, self)

    async def probe(self) -> str | None:
        self.mono_s += self.probe_s
        return self.failure

    def now(self) -> Moment:
        return Moment(self.mono_s, 0)

    def draw(self) -> float:
        return 0.5


async def test_an_api_that_fails_for_two_seconds_is_reported_once() -> None:
    """And that it answers again, once."""
    api = Api()
    api.failure = "refused"
    for _ in range(5):
        await api.watch.check()
        api.mono_s += FAILING_S / 2

    assert api.posted == [ApiChanged(is_failing=True, reason="refused")]
    api.failure = None
    for _ in range(2):
        await api.watch.check()
    assert api.posted[1:] == [ApiChanged(is_failing=False)]


async def test_one_failure_after_a_long_stall_is_not_reported() -> None:
    """The answer was there, but this process did not run."""
    api = Api()
    api.failure, api.probe_s = "the API does not answer", 2 * FAILING_S
    await api.watch.check()
    api.failure, api.probe_s = None, 0.0
    await api.watch.check()
    api.failure = "refused"
    await api.watch.check()

    assert api.posted == []
