import { Chart } from "../charts.js";
import { byName, count, mebibytes, plural, rate } from "../format.js";
import { LOST, warnings } from "../health.js";
import { html, useMemo } from "../lib.js";
import { href } from "../router.js";
import { history, mesh, nodes, stats } from "../store.js";
import { Sign, Topology } from "../topology.js";
import { Bar, Command, State } from "../ui.js";
import { Role, Short } from "./role.js";

const HOUR_S = 3600;
const CARDS_MAX = 24; //: more nodes are shown as a grid of small tiles

/** The mesh at a glance: its nodes, its work, its problems. */
export function Overview() {
  if (mesh.value === null || nodes.value.length === 0) return html`<p class="muted" role="status">Loading …</p>`;
  return html`<h1 class="visually-hidden">Overview</h1>
    <${Counts} />
    <${Health} />
    <div class="overview-top">
      <${MeshMap} />
      <${Charts} />
    </div>
    <${Members} />`;
}

function Counts() {
  const tasks = stats.value?.tasks ?? {};
  const live = nodes.value.filter(({ state }) => state !== "lost");
  const lost = nodes.value.length - live.length;
  const slots = live.reduce((sum, node) => sum + node.slots, 0);
  const used = live.reduce((sum, node) => sum + node.running, 0);
  // A failure of last week is no news: only the last hour counts, and is listed.
  return html`<ul class="counts">
    <li class="count"><a href=${href(["nodes"])}><b>${count(live.length)}</b><span>${live.length === 1 ? "node" : "nodes"}</span>
      <small>${lost > 0 ? `${count(lost)} lost` : `${plural(Math.max(0, slots - used), "slot")} free`}</small></a></li>
    <${Count} state="queued" n=${tasks.queued} />
    <${Count} state="running" n=${tasks.running} more=${`on ${plural(slots, "slot")}`} />
    <${Count} state="failed" within=${HOUR_S} n=${stats.value?.last_hour?.failed} more=${`in the last hour${tasks.failed > stats.value?.last_hour?.failed ? `; all: ${count(tasks.failed)}` : ""}`} />
    <${Count} state="completed" n=${tasks.completed} />
    <${Count} state="cancelled" n=${tasks.cancelled} />
  </ul>`;
}

function Count({ state, n, more = "", within }) {
  return html`<li class=${`count ${n === 0 ? "none" : ""}`}><a href=${href(["tasks"], { status: state, ended_within_s: within })}>
    <b>${count(n)}</b><${State} of=${state} /><small>${more}</small></a></li>`;
}

function Health() {
  const found = warnings(nodes.value, mesh.value, stats.value);
  if (nodes.value.length === 1) {
    return html`<section class="card invite" aria-label="Invitation">
      <div><h2>One machine so far</h2><p class="muted">Type this in a terminal here. It shows a code; enter it on the next machine, and both share their work.</p></div>
      <${Command} text="octaskly invite" />
    </section>
    <${Warnings} found=${found} />`;
  }
  return html`<${Warnings} found=${found} />`;
}

function Warnings({ found }) {
  if (found.length === 0) return null;
  return html`<ul class="warnings" aria-label="Warnings">
    ${found.map(({ kind, text, hint, command }) => html`<li key=${text} class=${`warning ${kind}`}>
      <div><strong>${text}</strong><p>${hint}</p></div>
      ${command && html`<${Command} text=${command} />`}
    </li>`)}
  </ul>`;
}

function MeshMap() {
  const standbys = [...mesh.value.standbys].sort(byName);
  const lead = nodes.value.find(({ role }) => role === "dispatcher");
  return html`<section class="card map" aria-label="Topology">
    <div class="head"><h2>Mesh</h2></div>
    <${Topology} nodes=${nodes.value} standbys=${standbys} />
    <ul class="key-list">
      ${lead && html`<li><${Sign} kind="dispatcher" />dispatcher: ${lead.name}</li>`}
      ${standbys.length > 0 && html`<li><${Sign} kind="standby" />standby: ${standbys.map(({ name, state }) => name + (state === "level" ? "" : " (joining)")).join(", ")}</li>`}
      ${nodes.value.length > standbys.length + (lead ? 1 : 0) && html`<li><${Sign} kind="worker" />worker</li>`}
      <li><${Sign} kind="slots" />slots in use</li>
    </ul>
    <p class="hint">Each new task is stored on ${plural(mesh.value.replicas, "node")}.${standbys.length > 0 && " Standbys are ready to become dispatcher, and run tasks too."}</p>
  </section>`;
}

function Charts() {
  const points = history.value;
  const at = useMemo(() => points.map((point) => point.at / 1000), [points]);
  const of = (name) => points.map((point) => point[name]);
  const last = points.at(-1) ?? {};
  return html`<div class="charts">
    <${Chart} title="Queue" now=${`${count(last.queued)} queued, ${count(last.running)} running`} at=${at} format=${rate} isWhole=${true}
      series=${[{ label: "queued", token: "queued", values: of("queued"), fill: true }, { label: "running", token: "running", values: of("running"), isRight: true }]} />
    <${Chart} title="Tasks per second" now=${`${rate(last.rate)} per second`} at=${at} format=${rate}
      series=${[{ label: "tasks that ended", token: "completed", values: of("rate"), fill: true }]} />
  </div>`;
}

function Members() {
  const all = nodes.value;
  const isMany = all.length > CARDS_MAX;
  const level = new Map(mesh.value.standbys.map((standby) => [standby.id, standby.state]));
  return html`<section aria-label="Nodes">
    <div class="head"><h2>Nodes</h2><a class="end" href=${href(["nodes"])}>All nodes</a></div>
    <ul class=${isMany ? "tiles" : "cards"}>
      ${all.map((node) => isMany
        ? html`<${Tile} key=${node.id} node=${node} />`
        : html`<${Card} key=${node.id} node=${node} standby=${level.get(node.id)} />`)}
    </ul>
  </section>`;
}

function Card({ node, standby }) {
  const { load } = node;
  const isLost = node.state === "lost";
  return html`<li class=${`card node ${node.state}`}>
    <header>
      <a class="node-name" href=${href(["nodes", node.name])}><bdi>${node.name}</bdi></a>
      <${Role} node=${node} standby=${standby} />
      <span class="end"><${State} of=${node.state} /></span>
    </header>
    <${Bar} label="Slots" kind="slots" part=${node.running / node.slots} text=${`${node.running} / ${node.slots}`} />
    ${isLost ? html`<p class="hint">${LOST}</p>` : html`
    <${Bar} label="CPU" part=${load.cpu_percent / 100} text=${`${Math.round(load.cpu_percent)} %`} />
    <${Bar} label="Memory" hotAt=${0.92} part=${load.memory_used_mb / node.memory_mb} text=${`${Math.round((100 * load.memory_used_mb) / node.memory_mb)} % of ${mebibytes(node.memory_mb)}`} />`}
    <footer class="hint">
      ${node.short_of && html`<${Short} of=${node.short_of} />`}
      <span>${[node.os, node.arch].filter(Boolean).join(" ")}</span>
      ${node.cpus && html`<span>${plural(node.cpus, "CPU")}</span>`}
      ${node.gpus.length > 0 && html`<span>${plural(node.gpus.length, "GPU")}</span>`}
      ${Object.entries(node.labels).slice(0, 4).map(([key, value]) => html`<span class="tag">${key}=${value}</span>`)}
    </footer>
  </li>`;
}

/** A node of a large mesh: its name and its load. */
function Tile({ node }) {
  const text = `${node.name}: ${node.role}, ${node.state}, ${node.running} of ${node.slots} slots, CPU ${Math.round(node.load.cpu_percent)} %`;
  return html`<li><a class=${`tile ${node.role} ${node.state}`} href=${href(["nodes", node.name])} title=${text} aria-label=${text}>
    <span class="tile-name"><bdi>${node.name}</bdi></span>
    <span class="bar-track"><span class="bar-fill slots" style=${{ width: `${(100 * node.running) / (node.slots || 1)}%` }}></span></span>
    <span class="bar-track"><span class="bar-fill" style=${{ width: `${Math.min(100, node.load.cpu_percent)}%` }}></span></span>
  </a></li>`;
}
