"""Metrics of real agents, read as Prometheus reads them."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from octaskly.metrics.table import METRICS
from tests.support.agents import (
    WAIT_S_MAX,
    Agent,
    finished,
    meshed,
    replicas,
    submit,
    until,
)

ROOT = Path(__file__).parents[3]
CONTRIB = ROOT / "contrib"
NAMES = ("ash", "birch", "cedar")
NAMED = re.compile(r"\b(?:octaskly|process)_[a-z_]+")
#: The name of a family whose samples have these suffixes.
ENDS = ("_bucket", "_sum", "_count")


@dataclass
class Mesh:
    """Three nodes that have run a few tasks, the dispatcher first."""

    agents: list[Agent]
    folder: Path

    @property
    def dispatcher(self) -> Agent:
        return self.agents[0]

    @property
    def follower(self) -> Agent:
        return self.agents[1]

    def token(self, role: str) -> str:
        _, minted = self.dispatcher.call("POST", "/api/v1/tokens", {"role": role})
        return str(minted["token"])

    def ca(self) -> Path:
        """Return the file with the CA of the mesh."""
        command = ["octaskly", "ca", "--secret-file", str(self.folder / "mesh.key")]
        program = ROOT / ".venv/bin" / command[0]
        done = subprocess.run([program, *command[1:]], capture_output=True, check=True)
        (self.folder / "ca.pem").write_bytes(done.stdout)
        return self.folder / "ca.pem"


@pytest.fixture(scope="module")
def scraped_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh")
    with meshed(folder, *NAMES) as agents:
        until(lambda: replicas(agents[0]) == len(NAMES), "both standbys are in sync")
        _work(agents[0])
        yield Mesh(agents, folder)


def _work(agent: Agent) -> None:
    """Run tasks with each kind of end, and with names that must not become labels."""
    ended = [
        submit(agent, command, name="secret-name", labels={"who": "secret-label"})
        for command in ("true", "exit 3", "kill -9 $$")
    ]
    ended.append(submit(agent, "sleep 30", timeout=1))
    queued = submit(agent, "true", requires={"gpus": 999})
    agent.call("DELETE", f"/api/v1/tasks/{queued}")
    submit(agent, "true", id="too-much", requires={"gpus": 999})
    for task in ended:
        finished(agent, task)


def scraped(agent: Agent, **headers: str) -> dict[str, Family]:
    """Return the samples of a node on loopback without a token, by name."""
    request = urllib.request.Request(
        agent.ready()["api_url"] + "/metrics", headers=headers
    )
    with urllib.request.urlopen(request, timeout=WAIT_S_MAX) as answer:
        text = answer.read().decode()
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(text)
    }


def value(family: Family, **labels: str) -> float:
    """Return the sum of the samples with these labels."""
    return sum(
        sample.value
        for sample in family.samples
        if labels.items() <= sample.labels.items() and not sample.name.endswith("_sum")
    )


def test_every_metric_of_the_table_is_reported_by_its_node(
    scraped_mesh: Mesh,
) -> None:
    """Only the dispatcher reports its metrics, so sums are right."""
    reported = {
        "the dispatcher": set(scraped(scraped_mesh.dispatcher)),
        "followers": set(scraped(scraped_mesh.follower)),
    }

    rare = {"octaskly_mesh_failover_seconds"}  # Nothing has failed here.
    for who, names in reported.items():
        own = {m.name for m in METRICS if m.reported_by in ("every node", who)}
        # Unless a slow machine was taken for dead.
        assert {n for n in names if n.startswith("octaskly_")} - rare == own - rare


def test_promtool_accepts_the_metrics(scraped_mesh: Mesh) -> None:
    """Its linter checks names, units, types and help."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool of Debian's prometheus")
    url = scraped_mesh.dispatcher.ready()["api_url"] + "/metrics"
    with urllib.request.urlopen(url, timeout=WAIT_S_MAX) as answer:
        text = answer.read()

    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_values_match_the_events(scraped_mesh: Mesh) -> None:
    """Ends by outcome, at the dispatcher and at the workers."""
    dispatcher = scraped(scraped_mesh.dispatcher)
    nodes = [scraped(agent) for agent in scraped_mesh.agents]

    def everywhere(name: str, **labels: str) -> float:
        return sum(value(node[name], **labels) for node in nodes if name in node)

    ended = "octaskly_task_ended_total"
    assert value(dispatcher[ended], state="completed") == 1
    assert value(dispatcher[ended], state="failed") == 3
    assert value(dispatcher[ended], state="cancelled") == 1
    attempts = "octaskly_task_attempts_ended_total"
    assert everywhere(attempts, outcome="completed", reason="exit") == 1
    assert everywhere(attempts, outcome="failed", reason="signal") == 1
    assert everywhere("octaskly_runner_kills_total", reason="timeout") == 1
    assert everywhere("octaskly_task_run_seconds", le="+Inf") == 4
    assert everywhere("octaskly_task_queue_seconds", le="+Inf") == 4
    assert value(dispatcher["octaskly_queue_tasks"], state="queued") == 1
    assert value(dispatcher["octaskly_queue_oldest_age_seconds"]) > 0
    assert value(dispatcher["octaskly_mesh_nodes"], state="ready") == 3
    assert everywhere("octaskly_mesh_role", role="dispatcher") == 1
    assert everywhere("octaskly_mesh_dispatcher_known") == 3
    assert value(dispatcher["octaskly_store_replicas"]) == 3
    age = "octaskly_mesh_heartbeat_age_seconds"
    until(
        lambda: 0 <= value(scraped(scraped_mesh.follower)[age]) < 3, "heartbeats come"
    )


def test_no_label_contains_text_of_users_or_strangers(scraped_mesh: Mesh) -> None:
    """Names of tasks are private, and paths would make unlimited series."""
    url = scraped_mesh.dispatcher.ready()["api_url"]
    for path in ("/one", "/two", "/three/secret-path", "/api/v1/tasks/secret-task"):
        request = urllib.request.Request(url + path, method="POST")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=WAIT_S_MAX)

    families = scraped(scraped_mesh.dispatcher)

    shown = {
        text
        for family in families.values()
        for sample in family.samples
        for text in sample.labels.values()
    }
    assert not [text for text in shown if "secret" in text]
    requests = families["octaskly_api_requests_total"].samples
    assert sum(sample.labels["route"] == "" for sample in requests) == 1
    assert value(families["octaskly_api_requests_total"], route="") >= 3


def test_every_metric_of_the_dashboard_and_the_alerts_exists(
    scraped_mesh: Mesh,
) -> None:
    """A panel without data, or an alert that never fires, is worse than none."""
    existing = {m.name for m in METRICS} | scraped(scraped_mesh.dispatcher).keys()
    dashboard = json.loads((CONTRIB / "grafana/octaskly.json").read_text())
    queries = "\n".join(_expressions(dashboard))
    rules = (CONTRIB / "prometheus/alerts.yml").read_text()

    for text in (queries, rules):
        named = set(NAMED.findall(text))
        assert len(named) >= 5
        assert {name for name in named if _family(name, existing) is None} == set()


def _expressions(board: Mapping[str, Any]) -> Iterator[str]:
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (v["query"] for v in board["templating"]["list"] if "query" in v)


def _family(name: str, existing: set[str]) -> str | None:
    for end in ("", *ENDS):
        if name.endswith(end) and name.removesuffix(end) in existing:
            return name
    return None


# --- who may scrape, and where -----------------------------------------------------


def test_a_scrape_over_the_network_needs_a_viewer_token(
    scraped_mesh: Mesh,
) -> None:
    """On the machine itself none is needed; a bad one is refused there, too."""
    tls = ssl.create_default_context(cafile=str(scraped_mesh.ca()))
    port = int(scraped_mesh.follower.ready()["lan_url"].rpartition(":")[2])
    lan, local = f"https://127.0.0.1:{port}", scraped_mesh.follower.ready()["api_url"]
    viewer = {"Authorization": f"Bearer {scraped_mesh.token('viewer')}"}

    def status(url: str, headers: dict[str, str]) -> int:
        request = urllib.request.Request(url + "/metrics", headers=headers)
        context = tls if url.startswith("https") else None
        try:
            with urllib.request.urlopen(
                request, timeout=WAIT_S_MAX, context=context
            ) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status(lan, {}) == 401
    assert status(lan, viewer) == 200
    assert status(local, {}) == 200
    assert status(local, {"Authorization": "Bearer forged"}) == 401
    assert status(local, {"Host": "evil.example"}) == 403
    assert status(local, {"Origin": "http://evil.example"}) == 403
    assert status(local, {"Sec-Fetch-Site": "cross-site"}) == 403


def config_shown(**files: object) -> str:
    """Return the configuration of the how-to, for this mesh."""
    page = (ROOT / "docs/how-to/monitor-with-prometheus.md").read_text()
    text = page.partition("```yaml\n")[2].partition("```")[0]
    for shown, real in {
        "https://nas.local:3443": files["url"],
        "/etc/prometheus/octaskly.token": files["token"],
        "/etc/prometheus/octaskly-ca.pem": files["ca"],
        "15s": "1s",
    }.items():
        assert shown in text
        text = text.replace(shown, str(real))
    return text


@contextmanager
def prometheus(folder: Path, config: str, port: int) -> Iterator[str]:
    """Run the real one on loopback; its data is deleted after the block."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs Debian's prometheus")
    (folder / "prometheus.yml").write_text(config)
    process = subprocess.Popen(
        [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_prometheus_finds_and_scrapes_every_node(
    scraped_mesh: Mesh, tmp_path: Path, unused_tcp_port: int
) -> None:
    """As in the how-to: one node lists all, with a viewer's token and the CA."""
    token = tmp_path / "token"
    token.write_text(scraped_mesh.token("viewer"))
    url = scraped_mesh.follower.ready()["lan_url"]
    config = config_shown(url=url, token=token, ca=scraped_mesh.ca())

    with prometheus(tmp_path, config, unused_tcp_port) as web:

        def targets() -> dict[str, str]:
            try:
                with urllib.request.urlopen(f"{web}/api/v1/targets", timeout=5) as got:
                    active = json.load(got)["data"]["activeTargets"]
            except OSError:
                return {}
            return {one["labels"]["node"]: one["health"] for one in active}

        up = dict.fromkeys(NAMES, "up")
        until(lambda: targets() == up, "all nodes are scraped")
