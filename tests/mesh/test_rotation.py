"""F33: the secret of a real mesh is rotated, and a machine is locked out."""

import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from octaskly.cli.output.render import EXIT_NO_DISPATCHER
from tests.mesh.conftest import MakeLab
from tests.mesh.forming import FORM_S, is_formed, nodes, secret_file, submit
from tests.mesh.lab import Host, Lab
from tests.mesh.netns import wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

TIMES = ("--rotate-within", "4s", "--keep-old-secret", "20s")
WAIT_S = 60.0


def start(host: Host) -> None:
    """Start the agent of a host, with a secret file that no other host has."""
    host.agent("", *TIMES, secret=host.folder / "mesh.key", is_awaited=False)


def formed(lab: Lab) -> None:
    text = secret_file(lab.folder).read_text()
    for host in lab.hosts:
        path: Path = host.folder / "mesh.key"
        path.touch(mode=0o600)
        path.write_text(text)
        start(host)
    wait_until("one mesh", lambda: is_formed(lab.hosts), within_s=FORM_S, every_s=0.2)


def phase(host: Host) -> tuple[str, int]:
    said = host.cli("rotate", "--status", "--json")
    if said.returncode != 0:
        return "", 0
    shown = json.loads(said.stdout)
    return shown["phase"], shown["generation"]


def reach(host: Host, wanted: tuple[str, int]) -> None:
    wait_until(f"{wanted}", lambda: phase(host) == wanted, within_s=WAIT_S, every_s=0.2)


def has_it(hosts: Sequence[Host], generation: int) -> bool:
    word = f"generation={generation} "
    return all(word in (host.folder / "mesh.key").read_text() for host in hosts)


def dispatcher_and_others(hosts: Sequence[Host]) -> tuple[Host, list[Host]]:
    heads = [n["name"] for n in nodes(hosts[0]) if n["role"] == "dispatcher"]
    dispatcher = next(host for host in hosts if [host.name] == heads)
    return dispatcher, [host for host in hosts if host is not dispatcher]


def stop(host: Host) -> None:
    host.first.process.send_signal(signal.SIGTERM)
    host.first.process.wait(30)


def spread(dispatcher: Host, stay: Sequence[Host], away: Host) -> None:
    """Rotate the secret with one node off, which comes back within the window."""
    stop(away)
    (task,) = submit(dispatcher, ["echo $$; sleep 120"])
    assert dispatcher.cli("rotate").returncode == 0
    wait_until("it spreads", lambda: has_it([dispatcher, *stay], 2), within_s=WAIT_S)
    assert phase(dispatcher) == ("spreading", 1)
    reach(dispatcher, ("switched", 2))
    start(away)
    wait_until(
        "all",
        lambda: is_formed([dispatcher, *stay, away]),
        within_s=WAIT_S,
        every_s=0.2,
    )
    wait_until("it learnt", lambda: has_it([away], 2), within_s=WAIT_S)
    # No process of a task was touched.
    shown = json.loads(dispatcher.cli("show", task, "--json").stdout)
    assert (shown["status"], shown["attempt"]) == ("running", 1)


def settle_without(
    dispatcher: Host, rest: Sequence[Host], old_secret: str, old_token: str
) -> None:
    """Let the dispatcher die in the middle, and come back with the old secret."""
    dispatcher.first.process.kill()
    dispatcher.first.process.wait(10)
    wait_until("a new one", lambda: is_formed(rest), within_s=WAIT_S, every_s=0.2)
    reach(rest[0], ("settled", 2))
    (dispatcher.folder / "mesh.key").write_text(old_secret)
    start(dispatcher)
    wait_until(
        "it gets the reason",
        lambda: "renewed its secret without this node" in dispatcher.first.log,
        within_s=WAIT_S,
    )
    health = dispatcher.http("GET", "/health", token="", port=3000)
    assert "octaskly join" in health.json["message"]
    refused = dispatcher.cli("submit", "true")
    assert refused.returncode == EXIT_NO_DISPATCHER
    assert "octaskly invite    on a member" in refused.stderr
    assert rest[0].http("GET", "/api/v1/tasks", token=old_token).status == 401


def lock_out(gone: Host, left: Sequence[Host]) -> None:
    """Revoke a machine, which then forgets its state."""
    assert left[0].cli("revoke", gone.name, "--yes").returncode == 0
    reach(left[0], ("settled", 3))
    assert has_it(left, 3)
    assert not has_it([gone], 3)
    health = gone.http("GET", "/health", token="", port=3000)
    assert "revoked" in health.json["message"]
    refused = gone.cli("submit", "true")
    assert refused.returncode == EXIT_NO_DISPATCHER
    assert "error: This node is no longer in the mesh" in refused.stderr
    assert "this node was revoked; `octaskly leave --force`, then" in refused.stderr
    ready = {node["name"] for node in nodes(left[0]) if node["state"] == "ready"}
    assert ready == {host.name for host in left}
    assert gone.cli("leave", "--yes").returncode != 0
    assert gone.cli("leave", "--yes", "--force", timeout_s=90).returncode == 0
    assert not (gone.folder / "mesh.key").exists()
    assert not (gone.first.state / "log.db").exists()


@pytest.mark.soak  # This takes over a minute: it waits for every phase.
def test_f33_secret_is_rotated_and_a_machine_is_locked_out(
    make_lab: MakeLab,
) -> None:
    """One node is off, and one dispatcher dies; tasks run on."""
    lab = make_lab(4)
    formed(lab)
    dispatcher, (away, *stay) = dispatcher_and_others(lab.hosts)
    old_token = stay[0].token()
    spread(dispatcher, stay, away)
    old_secret = (lab.folder / "mesh.key").read_text()
    settle_without(dispatcher, [away, *stay], old_secret, old_token)
    lock_out(stay[0], [away, *stay[1:]])
    left = [away, *stay[1:]]
    assert left[0].cli("rotate", "--now", "--yes").returncode == 0
    reach(left[0], ("settled", 4))
    assert has_it(left, 4)
