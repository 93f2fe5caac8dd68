"""One case of the fault catalogue: a mesh, its clients, its faults, its checks.

    scene = Scene("F1", lab)
    scene.load()
    scene.kill(scene.dispatcher())
    ...
    scene.conclude()

`conclude` waits for rest, reads all data from every host and checks all invariants.
"""

import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.mesh import databases
from tests.mesh.forming import (
    FORM_S,
    all_tasks,
    dispatcher_of,
    is_formed,
    nodes,
    secret_file,
    submit,
)
from tests.mesh.history import (
    History,
    Load,
    Outcome,
    Pace,
    Partition,
    Split,
    command_of,
    runs,
)
from tests.mesh.invariants import (
    ALL,
    DESCRIPTORS_MORE_MAX,
    MEMORY_MORE_MB_MAX,
    Evidence,
    ResourceUse,
    lost_tasks,
    outcomes,
)
from tests.mesh.lab import Host, Lab
from tests.mesh.netns import pids_in, wait_until
from tests.support.figures import FIGURES

QUIET_S = 90.0  #: seconds after the last fault until everything has ended
IN_SYNC_S = 30.0  #: seconds until standbys are in sync with the dispatcher
#: seconds after the last request until connections between nodes are closed
CLOSED_S = 20.0
FLOW_S = 45.0  #: seconds until tasks are accepted again


class Scene:
    """A mesh under load, and the faults of a case."""

    def __init__(
        self, case: str, lab: Lab, *, hosts: Sequence[Host] = (), slots: int = 2
    ) -> None:
        self.case = case
        self.lab = lab
        self.hosts = list(hosts or lab.hosts)
        self.secret = secret_file(lab.folder)
        self.suspects: set[str] = set()
        self.lost: set[str] = set()
        self.figures: dict[str, float | int] = {}
        self._slots = slots
        self._is_whole = False
        self._options: dict[str, tuple[str, ...]] = {}
        self.environ: Callable[[Host], Mapping[str, str]] = lambda _: {}
        """Extra environment variables for the agents of a host."""
        self._loads: list[Load] = []
        self._history: History | None = None
        self._before: dict[int, ResourceUse] = {}

    # --- agents ----------------------------------------------------------------------

    def start(self, *hosts: Host, options: Sequence[str] = ()) -> None:
        """Start agents at once, each with the options of its first start."""
        self.launch(*hosts, options=options)
        for host in hosts:
            assert host.first.description

    def launch(self, *hosts: Host, options: Sequence[str] = ()) -> None:
        """Start agents as `start` does, and do not wait until they are ready."""
        for host in hosts:
            args = self._options.setdefault(host.name, tuple(options))
            slots = ("--slots", str(self._slots))
            host.agent(
                "",
                *slots,
                *args,
                secret=self.secret,
                env=self.environ(host),
                is_awaited=False,
            )

    def form(self) -> "Scene":
        """Start all hosts and wait until they are one mesh."""
        self.start(*(host for host in self.hosts if not host.agents))
        self.await_mesh()
        return self

    def await_mesh(
        self, hosts: Sequence[Host] = (), *, within_s: float = FORM_S * 2
    ) -> float:
        """Wait until hosts are one mesh; return how long it took."""
        began_s = time.monotonic()
        members = hosts or self.hosts
        # Each host asks the dispatcher for as many members as there are hosts.
        every_s = len(members) ** 2 / 1000
        wait_until(
            "one mesh", lambda: is_formed(members), within_s=within_s, every_s=every_s
        )
        now_s = time.monotonic()
        if set(members) == set(self.hosts):
            self._is_whole = True
            periods: list[Partition | Split] = [
                *self.history.partitions,
                *self.history.splits,
            ]
            for period in periods:
                period.ended_s = min(period.ended_s, now_s)
        return now_s - began_s

    def await_copies(self) -> None:
        """Wait until a standby holds all that the dispatcher holds now."""
        dispatcher = self.dispatcher()
        goal = databases.vector(dispatcher.first.state)

        def is_copied() -> bool:
            return any(
                all(has.get(stream, 0) >= seq for stream, seq in goal.items())
                for host in self.standbys(dispatcher)
                for has in (databases.vector(host.first.state),)
            )

        wait_until("a standby holds all", is_copied, within_s=IN_SYNC_S)

    def dispatcher(self, seen_by: Host | None = None) -> Host:
        """Return the host of the dispatcher."""
        witness = seen_by or self.hosts[0]
        name = wait_until(
            "a dispatcher", lambda: dispatcher_of(witness), within_s=FORM_S
        )
        return next(host for host in self.hosts if host.name == name)

    def named(self, witness: Host) -> Host | None:
        """Return the host that a host takes for dispatcher, if it answers and knows."""
        answer = self.history.ask(witness, "GET", "/api/v1/nodes")
        if answer is None or answer.status != 200:
            return None
        heads = [n["name"] for n in answer.json["nodes"] if n["role"] == "dispatcher"]
        return next((host for host in self.hosts if host.name in heads), None)

    def others(self, *hosts: Host) -> list[Host]:
        """Return all hosts but these."""
        return [host for host in self.hosts if host not in hosts]

    def standbys(self, seen_by: Host) -> list[Host]:
        """Return the hosts of the standbys, the first in line first."""
        names = [n["name"] for n in nodes(seen_by) if n["role"] == "standby"]
        return [host for name in names for host in self.hosts if host.name == name]

    def term(self, seen_by: Host) -> int:
        """Return the term of the mesh."""
        answer = seen_by.http("GET", "/api/v1/stats")
        assert answer.status == 200, answer.body
        return int(answer.json["mesh"]["term"])

    # --- faults ----------------------------------------------------------------------

    def kill(self, *hosts: Host) -> None:
        """Kill agents, as a power cut would."""
        self._suspect(*hosts)
        for host in hosts:
            host.first.signal(signal.SIGKILL)
        for host in hosts:
            host.first.wait()

    def stop(self, host: Host) -> None:
        """Stop an agent as systemd does."""
        self._suspect(host)
        assert host.first.stop() == 0, host.first.log

    def replace(self, host: Host) -> None:
        """Put a machine with an empty disk and a new name in the place of a killed one.

        With its name, it would be a new node with a name that the mesh chooses.
        """
        host.agents.clear()
        host.name += "n"
        self.start(host)

    def freeze(self, *hosts: Host) -> None:
        """Stop agents in mid-step (SIGSTOP)."""
        self._suspect(*hosts)
        for host in hosts:
            host.first.signal(signal.SIGSTOP)

    def thaw(self, *hosts: Host) -> None:
        """End `freeze`."""
        for host in hosts:
            host.first.signal(signal.SIGCONT)

    def sleep(self, *hosts: Host) -> None:
        """Stop all processes of hosts, launchers and tasks too, as suspend does."""
        self._suspect(*hosts)
        for host in hosts:
            stopped: set[int] = set()
            while new := set(pids_in(host.netns)) - stopped:
                for pid in new:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP)
                stopped |= new

    def wake(self, *hosts: Host) -> None:
        """End `sleep`."""
        for host in hosts:
            for pid in pids_in(host.netns):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Leave a period in which no host can accept out of the gaps."""
        began_s = time.monotonic()
        yield
        self.history.outages.append((began_s, time.monotonic()))

    def cut(self, host: Host) -> None:
        """Unplug a host, until `lab.heal`."""
        self._suspect(host, groups=([host], self.others(host)))
        self.lab.cut(host)

    def split(self, *groups: Sequence[Host]) -> None:
        """Split the LAN, until `lab.join`; unreachable tasks may run twice."""
        self._suspect(*(host for group in groups for host in group), groups=groups)
        self.lab.split(*groups)

    def distrust_network(self, *, is_split: bool) -> None:
        """Record that tasks may run twice on each host, without an excuse for a 404.

        Args:
            is_split: True if a part of the mesh is cut off, at least in one direction.
        """
        self.suspects |= {host.name for host in self.hosts}
        if is_split:
            self._note_split()

    def note_strangers(self) -> None:
        """Record that hosts have not met, so one may lack another's tasks (G7).

        Each host must still find the tasks that were accepted through it.
        """
        groups = tuple(frozenset({host.name}) for host in self.hosts)
        self.history.partitions.append(Partition(time.monotonic(), groups))

    def _note_split(self) -> None:
        self.history.splits.append(Split(time.monotonic()))

    def _suspect(self, *hosts: Host, groups: Sequence[Sequence[Host]] = ()) -> None:
        """Record hosts whose tasks may run twice, and gaps in the hosts' knowledge.

        With one host down, a standby that knows all is left. With more at once, or one
        before the mesh is whole again, all hosts that know a task may be down.
        """
        self.suspects |= {host.name for host in hosts}
        if groups or len(hosts) > 1 or not self._is_whole:
            parts = groups or [self.others(*hosts)]
            names = tuple(frozenset(host.name for host in part) for part in parts)
            self.history.partitions.append(Partition(time.monotonic(), names))
        if groups:
            self._note_split()
        self._is_whole = False

    # --- clients ---------------------------------------------------------------------

    @property
    def history(self) -> History:
        """The history of its clients; it needs an agent, which makes its token."""
        if self._history is None:
            self._history = History(self.lab.hosts[0].token())
        return self._history

    def load(self, *hosts: Host, pace: Pace | None = None) -> Load:
        """Let clients work through hosts, and wait until tasks are accepted."""
        if not self._loads:
            self._before = self._uses()
        name = f"{self.case}-{len(self._loads)}"
        load = Load(name, self.history, hosts or self.hosts, pace or Pace())
        self._loads.append(load)
        self.await_flow(load, 10)
        return load

    def await_flow(self, load: Load, more: int = 10, within_s: float = FLOW_S) -> None:
        """Wait until so many more tasks were accepted."""
        goal = load.accepted + more
        wait_until(
            f"{load.name} flows", lambda: load.accepted >= goal, within_s=within_s
        )

    def submit(self, host: Host, key: str, body: str = "") -> str:
        """Submit one task and return its id."""
        made = self.history.submit(host, key, body)
        assert made.outcome is Outcome.OK, made
        return made.task

    def bulk(self, host: Host, many: int) -> None:
        """Submit many tasks in one request."""
        keys = [f"{self.case}-bulk-{number}" for number in range(many)]
        commands = [self.history.asked.setdefault(k, command_of(k)) for k in keys]
        self.history.accepted |= dict(zip(keys, submit(host, commands), strict=True))

    # --- checks ----------------------------------------------------------------------

    def stop_load(self) -> None:
        """Stop all clients and readers."""
        for load in self._loads:
            load.stop()

    def conclude(
        self,
        *,
        gap_s_max: float = 60.0,
        memory_more_mb_max: float = MEMORY_MORE_MB_MAX,
    ) -> None:
        """Wait for one mesh at rest, check all invariants, tell figures.

        Args:
            gap_s_max: Longest time without an accepted task.
            memory_more_mb_max: What an agent may hold more than before.
        """
        self.figures["heal_s"] = self.await_mesh()
        self.stop_load()
        witness = self.hosts[0]
        for key in self.history.unsettled():
            wait_until(
                f"{key} is settled",
                lambda key=key: self._is_settled(witness, key),  # type: ignore[misc]
                within_s=FLOW_S,
            )
        self._await_rest(witness)
        self._read_outcomes_again()
        seen = self._evidence(witness)
        seen.gap_s_max, seen.memory_more_mb_max = gap_s_max, memory_more_mb_max
        self._report(seen)
        for check in ALL:
            check(seen)

    def _is_settled(self, host: Host, key: str) -> bool:
        return self.history.submit(host, key).outcome is Outcome.OK

    def _await_rest(self, witness: Host) -> None:
        deadline_s = time.monotonic() + QUIET_S
        while True:
            answer = witness.http("GET", "/api/v1/stats")
            now = answer.json["tasks"] if answer.status == 200 else {"queued": -1}
            is_over = not (now["queued"] or now["running"])
            if is_over and not any(self._spooled().values()):
                return
            assert time.monotonic() < deadline_s, f"no rest: {now}, {self._spooled()}"
            time.sleep(0.25)

    def _read_outcomes_again(self) -> None:
        """Read each outcome that a client has seen once more, from another host."""
        ended = {r.task: r.host for r in self.history.reads if r.outcome is not None}
        for turn, (task, seen_at) in enumerate(ended.items()):
            others = [h for h in self.hosts if h.name != seen_at] or self.hosts
            self.history.read(others[turn % len(others)], task)

    def _spooled(self) -> dict[str, int]:
        return {h.name: databases.spooled(h.first.state) for h in self.hosts}

    def _evidence(self, witness: Host) -> Evidence:
        holders = [self.dispatcher(witness), *self.standbys(witness)]
        states = {host.name: host.first.state for host in self.hosts}
        wait_until(
            "standbys are in sync",
            lambda: _are_in_sync([states[host.name] for host in holders]),
            within_s=IN_SYNC_S,
        )
        return Evidence(
            history=self.history,
            lists={
                h.name: {task["id"]: task for task in all_tasks(h)} for h in self.hosts
            },
            held={h.name: databases.tasks(states[h.name]) for h in holders},
            logs={name: databases.log(state) for name, state in states.items()},
            writers={name: databases.writers(state) for name, state in states.items()},
            runs=runs(self.lab),
            spooled=self._spooled(),
            heads={host.name: dispatcher_of(host) for host in self.hosts},
            suspects=self.suspects,
            lost=self.lost,
            before=self._before,
            after=self._settled_uses(),
        )

    def _uses(self) -> dict[int, ResourceUse]:
        """Return the resources of each running agent."""
        agents = [agent for host in self.hosts for agent in host.agents.values()]
        return {a.pid: use(a.pid) for a in agents if a.process.poll() is None}

    def _settled_uses(self) -> dict[int, ResourceUse]:
        """Return each agent's resources once idle connections are closed, or late."""
        deadline_s = time.monotonic() + CLOSED_S
        while True:
            now = self._uses()
            more = [
                u.descriptors - self._before[p].descriptors
                for p, u in now.items()
                if p in self._before
            ]
            if (
                max(more, default=0) <= DESCRIPTORS_MORE_MAX
                or time.monotonic() > deadline_s
            ):
                return now
            time.sleep(0.5)

    def _report(self, seen: Evidence) -> None:
        again = Counter(run.task for run in seen.runs)
        told = {
            "case": self.case,
            "gap_s": round(self.history.longest_gap_s(), 2),
            "accepted": len(self.history.accepted),
            "lost": len(lost_tasks(seen)),
            "unknown": sum(read.status == 404 for read in self.history.reads),
            "changed": len(self.history.changed()),
            "ran_twice": sum(many > 1 for many in again.values()),
            "runs": len(seen.runs),
            "refused": dict(outcomes(self.history)),
            "reads": len(self.history.reads),
            **{name: round(figure, 2) for name, figure in self.figures.items()},
        }
        FIGURES.append(json.dumps(told))


def use(pid: int) -> ResourceUse:
    """Return the current resources of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    rss = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return ResourceUse(descriptors, int(rss.split()[1]) / 1024)


def holds(is_true: Callable[[], bool], *, for_s: float, what: str) -> None:
    """Fail if a condition stops holding within a time."""
    until_s = time.monotonic() + for_s
    while time.monotonic() < until_s:
        assert is_true(), f"no longer: {what}"
        time.sleep(0.1)


def _are_in_sync(states: Sequence[Path]) -> bool:
    first, *others = (databases.vector(state) for state in states)
    return all(other == first for other in others)
