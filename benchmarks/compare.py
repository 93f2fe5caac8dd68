"""Compares trees of this repository by figures that users see, in alternating runs.

usage: python -m benchmarks.compare [--rounds N] [--count N] WHAT TREE TREE...

WHAT is `latency` (submit to result on an idle node), `bulk` (`true` by bulk REST),
`noop` (tasks that return at once), `accept` (tasks that only wait) or `start`
(`octaskly ls`, and an agent until it is ready). Agents of all trees run at the
same time and take turns, one task or batch each, so that other work on the machine
meets all of them alike. Each figure is a median; each ratio is the median of the
ratios to the first tree in the same turn, with the quartiles of the medians of rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from benchmarks import noop
from benchmarks.measure import (
    BATCH,
    cpu_s,
    exchange,
    occupy,
    rss_mb,
    throughput,
)
from octaskly.trust import create_secret_file
from tests.support.agents import Agent, launch, stop_all

Round = dict[str, list[list[float]]]  #: by figure, for each turn one value a tree


def main() -> None:
    """Print each figure of each tree, and its ratio to the first tree's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=5, help="with agents anew in each"
    )
    parser.add_argument("--count", type=int, default=100, help="turns in each round")
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("trees", nargs="+", type=Path)
    options = parser.parse_args()
    for tree in options.trees:
        if not (tree / "octaskly" / "__main__.py").is_file():
            parser.error(f"no tree of this repository: {tree}")  # Else another is used.
    rounds: list[Round] = []
    try:
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory(prefix="octaskly-compare-") as folder:
                measure = WHAT[options.what]
                rounds.append(measure(Path(folder), options.trees, options.count))
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    finally:  # A round that fails late must not cost the others.
        if rounds:
            _show(rounds, options.trees)


def _show(rounds: list[Round], trees: list[Path]) -> None:
    print(f"{'figure':24} {'tree':16} {'median':>9} {'ratio':>7}  quartiles of rounds")
    for figure in rounds[0]:
        turns = [turn for each in rounds for turn in each[figure]]
        for place, tree in enumerate(trees):
            value = statistics.median(turn[place] for turn in turns)
            ratio = statistics.median(turn[place] / turn[0] for turn in turns)
            of_rounds = [
                statistics.median(turn[place] / turn[0] for turn in each[figure])
                for each in rounds
            ]
            low, _, high = statistics.quantiles(of_rounds * 2, n=4)
            spread = f"{low:.3f} to {high:.3f}"
            print(f"{figure:24} {tree.name:16} {value:9.3f} {ratio:7.3f}  {spread}")


def _environ(tree: Path) -> dict[str, str]:
    return dict(os.environ, PYTHONPATH=str(tree.resolve()), PYTHONSAFEPATH="1")


@contextlib.contextmanager
def _agents(folder: Path, trees: list[Path]) -> Iterator[list[Agent]]:
    """Run one agent of each tree, each in a mesh of its own."""
    agents: list[Agent] = []
    try:
        for place, tree in enumerate(trees):
            state, secret = folder / str(place), folder / f"{place}.key"
            create_secret_file(secret)
            environ = _environ(tree)
            agents.append(launch(state, secret, "--slots", "2", environ=environ))
        for agent in agents:
            agent.ready()
            throughput(agent, "true", BATCH)  # Launchers start with the first task.
        yield agents
    finally:
        stop_all(agents)


def _turns(trees: list[Path], count: int) -> Iterator[list[int]]:
    """Yield the order in which trees have their turns: each begins as often."""
    places = list(range(len(trees)))
    for number in range(count):
        first = number % len(places)
        yield places[first:] + places[:first]


def _agent_cpu_s(agent: Agent) -> float:
    return cpu_s(agent.process.pid)


def _latency(folder: Path, trees: list[Path], count: int) -> Round:
    times: list[list[float]] = []
    with contextlib.ExitStack() as stack:
        agents = stack.enter_context(_agents(folder, trees))
        connections = []
        for agent in agents:
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(agent.ready()["socket"])
            connections.append(connection)
        began_s = [_agent_cpu_s(agent) for agent in agents]
        for order in _turns(trees, count):
            turn = [0.0] * len(trees)
            for place in order:
                turn[place] = _one_task_ms(connections[place])
            times.append(turn)
        ended_s = [_agent_cpu_s(agent) for agent in agents]
    cpu = [(b - a) / count * 1000 for a, b in zip(began_s, ended_s, strict=True)]
    return {"submit to result, ms": times, "agent CPU a task, ms": [cpu]}


def _one_task_ms(connection: socket.socket) -> float:
    time.sleep(0.01)
    began = time.perf_counter()
    created = exchange(connection, "POST", "/api/v1/tasks", b'{"command":"true"}')
    ended = exchange(connection, "GET", f"/api/v1/tasks/{created['id']}?wait=10")
    assert ended["exit_code"] == 0
    return (time.perf_counter() - began) * 1000


def _bulk(folder: Path, trees: list[Path], count: int) -> Round:
    rates: list[list[float]] = []
    cpu: list[list[float]] = []
    with _agents(folder, trees) as agents:
        for order in _turns(trees, count):
            rate, spent = [0.0] * len(trees), [0.0] * len(trees)
            for place in order:
                began_s = _agent_cpu_s(agents[place])
                rate[place] = throughput(agents[place], "true", BATCH)
                spent[place] = (_agent_cpu_s(agents[place]) - began_s) / BATCH * 1e6
            rates.append(rate)
            cpu.append(spent)
    return {"true, tasks/s": rates, "agent CPU a task, us": cpu}


def _noop(folder: Path, trees: list[Path], count: int) -> Round:
    with contextlib.ExitStack() as stack:
        agents = [
            stack.enter_context(noop.no_op_agent(folder / str(at), _environ(tree)))
            for at, tree in enumerate(trees)
        ]
        for agent in agents:
            noop.work(agent, 1)
        turns = _turns(trees, count)
        return _batches("no-op, tasks/s", agents, turns, lambda a: noop.work(a, 1))


def _accept(folder: Path, trees: list[Path], count: int) -> Round:
    with _agents(folder, trees) as agents:
        for agent in agents:
            occupy(agent, 2)
        turns = _turns(trees, count)
        return _batches(
            "accepted, tasks/s", agents, turns, lambda a: noop.accept(a, 1)[0]
        )


def _batches(
    figure: str,
    agents: list[Agent],
    turns: Iterable[list[int]],
    measure: Callable[[Agent], float],
) -> Round:
    """Measure the rate and the CPU of a batch of `noop.BULK` tasks in each turn."""
    rates: list[list[float]] = []
    cpu: list[list[float]] = []
    for order in turns:
        rate, spent = [0.0] * len(agents), [0.0] * len(agents)
        for place in order:
            began_s = _agent_cpu_s(agents[place])
            rate[place] = measure(agents[place])
            used_s = _agent_cpu_s(agents[place]) - began_s
            spent[place] = used_s / noop.BULK * 1e6
        rates.append(rate)
        cpu.append(spent)
    return {figure: rates, "agent CPU a task, us": cpu}


def _start(folder: Path, trees: list[Path], count: int) -> Round:
    figures: Round = {"ls, ms": [], "ls CPU, ms": [], "agent ready, s": []}
    figures |= {"agent CPU to ready, s": [], "agent RSS, MB": []}
    with _agents(folder, trees) as agents:
        for order in _turns(trees, count):
            turn = {figure: [0.0] * len(trees) for figure in figures}
            for place in order:
                environ, state = _environ(trees[place]), agents[place].state
                words = ["-m", "octaskly", "--state-dir", str(state), "ls"]
                began, before = time.perf_counter(), os.times()
                subprocess.run(
                    [sys.executable, *words],
                    check=True,
                    capture_output=True,
                    env=environ,
                )
                turn["ls, ms"][place] = (time.perf_counter() - began) * 1000
                after = os.times()
                turn["ls CPU, ms"][place] = 1000 * sum(
                    (
                        after.children_user - before.children_user,
                        after.children_system - before.children_system,
                    )
                )
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    create_secret_file(Path(own) / "key")
                    one = launch(
                        Path(own) / "state", Path(own) / "key", environ=environ
                    )
                    try:
                        one.ready()
                        ready_s = time.perf_counter() - one.started
                        turn["agent ready, s"][place] = ready_s
                        turn["agent CPU to ready, s"][place] = _agent_cpu_s(one)
                        turn["agent RSS, MB"][place] = rss_mb(one.process.pid)
                    finally:
                        one.stop()
            for figure, values in turn.items():
                figures[figure].append(values)
    return figures


WHAT = {
    "latency": _latency,
    "bulk": _bulk,
    "noop": _noop,
    "accept": _accept,
    "start": _start,
}

if __name__ == "__main__":
    main()
