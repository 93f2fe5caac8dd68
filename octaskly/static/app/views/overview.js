import { Chart } from "../charts.js";
import { byName, count, mebibytes, plural, rate } from "../format.js";
import { warnings } from "../health.js";
import { html, useMemo } from "../lib.js";
import { href } from "../router.js";
import { history, mesh, nodes, stats } from "../store.js";
import { Sign, Topology } from "../topology.js";
import { Bar, Command, State } from "../ui.js";
import { Role } from "./role.js";

const CARDS_MAX = 24; //: more nodes are shown as a grid of small tiles
const STATES = ["queued", "running", "completed", "failed", "cancelled"];

/** The mesh at a glance: who is there, what it does, what is wrong. */
export function Overview() {
  if (mesh.value === null || nodes.value.length === 0) return html`<p class="muted" role="status">Asking the mesh…</p>`;
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
  const running = live.reduce((sum, node) => sum + node.running, 0);
  return html`<ul class="counts">
    <li class="count"><a href=${href(["nodes"])}><b>${count(live.length)}${lost > 0 && html`<small> / ${count(nodes.value.length)}</small>`}</b><span>${live.length === 1 ? "node" : "nodes"}${lost > 0 ? ` there, ${count(lost)} lost` : ""}</span></a></li>
    <li class="count"><b>${count(running)}<small> / ${count(slots)}</small></b><span>${running === 1 ? "slot" : "slots"} in use</span></li>
    ${STATES.map((state) => html`<li class="count"><a href=${href(["tasks"], { status: state })}>
      <b>${count(tasks[state])}</b><${State} of=${state} /></a></li>`)}
  </ul>`;
}

function Health() {
  const found = warnings(nodes.value, mesh.value, stats.value);
  if (nodes.value.length === 1) {
    return html`<section class="card invite" aria-label="Invitation">
      <div><h2>One machine so far</h2><p class="muted">Show a code here, type it on the next machine, and both share their work.</p></div>
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
    <div class="head"><h2>Mesh</h2><span class="muted end" title="Grows by one each time that a dispatcher is elected">term ${mesh.value.term}</span></div>
    <${Topology} nodes=${nodes.value} standbys=${standbys} />
    <ul class="key-list">
      ${lead && html`<li><${Sign} kind="dispatcher" />dispatcher: ${lead.name}</li>`}
      ${standbys.length > 0 && html`<li><${Sign} kind="standby" />standby: ${standbys.map(({ name, state }) => name + (state === "level" ? "" : " (joining)")).join(", ")}</li>`}
      ${nodes.value.length > standbys.length + (lead ? 1 : 0) && html`<li><${Sign} kind="worker" />worker</li>`}
      <li><${Sign} kind="slots" />slots in use</li>
    </ul>
    <p class="hint">Each new task is stored on ${plural(mesh.value.replicas, "node")}.${standbys.length > 0 && " Standbys also run tasks."}</p>
  </section>`;
}

function Charts() {
  const points = history.value;
  const at = useMemo(() => points.map((point) => point.at / 1000), [points]);
  const of = (name) => points.map((point) => point[name]);
  const last = points.at(-1) ?? {};
  return html`<div class="charts">
    <${Chart} title="Queue" now=${`${count(last.queued)} queued, ${count(last.running)} running`} at=${at} format=${rate}
      series=${[{ label: "queued", token: "queued", values: of("queued"), fill: true }, { label: "running", token: "running", values: of("running") }]} />
    <${Chart} title="Tasks per second" now=${`${rate(last.rate)} /s`} at=${at} format=${rate}
      series=${[{ label: "ended", token: "completed", values: of("rate"), fill: true }]} />
  </div>`;
}

function Members() {
  const all = nodes.value;
  const isMany = all.length > CARDS_MAX;
  const level = new Map(mesh.value.standbys.map((standby) => [standby.id, standby.state]));
  return html`<section aria-label="Nodes">
    <div class="head"><h2>${plural(all.length, "node")}</h2><a class="end" href=${href(["nodes"])}>Manage</a></div>
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
      <a class="node-name" href=${href(["nodes"], { find: node.name })}>${node.name}</a>
      <${Role} node=${node} standby=${standby} />
      <span class="end"><${State} of=${node.state} /></span>
    </header>
    <${Bar} label="Slots" kind="slots" part=${node.running / node.slots} text=${`${node.running} / ${node.slots}`} />
    ${isLost ? html`<p class="hint">Its load is not known while it is lost.</p>` : html`
    <${Bar} label="CPU" part=${load.cpu_percent / 100} text=${`${Math.round(load.cpu_percent)} %`} />
    <${Bar} label="Memory" hotAt=${0.92} part=${load.memory_used_mb / node.memory_mb} text=${`${Math.round((100 * load.memory_used_mb) / node.memory_mb)} % of ${mebibytes(node.memory_mb)}`} />`}
    <footer class="hint">
      ${node.short_of && html`<span class="tag warn">short of ${node.short_of}</span>`}
      <span>${[node.os, node.arch].filter(Boolean).join(" ")}</span>
      ${node.cpus && html`<span>${plural(node.cpus, "CPU")}</span>`}
      ${node.gpus.length > 0 && html`<span>${plural(node.gpus.length, "GPU")}</span>`}
      ${Object.entries(node.labels).slice(0, 4).map(([key, value]) => html`<span class="tag">${key}=${value}</span>`)}
    </footer>
  </li>`;
}

/** One of very many: its name, and how busy it is. */
function Tile({ node }) {
  const told = `${node.name}: ${node.role}, ${node.state}, ${node.running} of ${node.slots} slots, CPU ${Math.round(node.load.cpu_percent)} %`;
  return html`<li><a class=${`tile ${node.role} ${node.state}`} href=${href(["nodes"], { find: node.name })} title=${told} aria-label=${told}>
    <span class="tile-name">${node.name}</span>
    <span class="bar-track"><span class="bar-fill slots" style=${{ width: `${(100 * node.running) / (node.slots || 1)}%` }}></span></span>
    <span class="bar-track"><span class="bar-fill" style=${{ width: `${Math.min(100, node.load.cpu_percent)}%` }}></span></span>
  </a></li>`;
}
