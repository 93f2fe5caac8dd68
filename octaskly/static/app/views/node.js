/** One node: what it is, what runs there, and what takes up space on its disk. */

import { get, post } from "../api.js";
import { clock, commandOf, count, duration, elapsed, mebibytes, plural, size, titleOf } from "../format.js";
import { LOST } from "../health.js";
import { useKeys } from "../keys.js";
import { Fragment, html, useEffect, useState } from "../lib.js";
import { listen } from "../live.js";
import { useReader } from "../reading.js";
import { go, href } from "../router.js";
import { may } from "../session.js";
import { mesh, nodes, now, tell } from "../store.js";
import { Ago, Bar, Button, Command, Dialog, Empty, State } from "../ui.js";
import { Orders, useOrders } from "./orders.js";
import { Role, Short } from "./role.js";

const PAGE = 50;
const RUNS_MAX = 100;
const REFRESH_MS = 1000;
const HOT = 0.9;
const SHORT = 12; //: characters of a digest

export function Node({ name }) {
  useKeys({ Escape: () => go(["nodes"]) });
  const { order, dialog } = useOrders();
  const node = nodes.value.find((one) => one.name === name || one.id === name);
  if (mesh.value === null) return html`<p class="muted" role="status">Loading …</p>`;
  if (node === undefined) return html`<${Empty} title="There is no such node"><p><a href=${href(["nodes"])}>All nodes</a></p><//>`;
  const standby = mesh.value.standbys.find(({ id }) => id === node.id);
  const isLost = node.state === "lost";
  return html`<div class="task">
    <nav aria-label="Path" class="crumbs"><a href=${href(["nodes"])}>Nodes</a> / <span><bdi>${node.name}</bdi></span></nav>
    <div class="head"><h1><bdi>${node.name}</bdi></h1><${State} of=${node.state} /><${Role} node=${node} standby=${standby?.state} />
      ${node.short_of && html`<${Short} of=${node.short_of} />`}
      ${may.manage.value && html`<div class="end"><${Orders} node=${node} order=${order} /></div>`}</div>
    ${isLost && html`<div class="warning bad"><div><strong>${node.name} is lost</strong>
      <p>${LOST} Is the machine on and connected? Then type this in a terminal on it:</p></div><${Command} text="octaskly service status" /></div>`}
    <${Machine} key=${node.id} node=${node} isLost=${isLost} />
    ${dialog}
  </div>`;
}

/** What a node is and does; what is on its disk, only the node itself knows. */
function Machine({ node, isLost }) {
  const isSilent = isLost || node.visitor; // A visitor answers no requests.
  const storage = useStorage(node.id, isSilent);
  const { usage } = storage;
  return html`<div class="task-parts">
      <section class="card node-load" aria-label="Load"><h2>Load</h2>
        <${Bar} label="Slots" kind="slots" part=${node.running / node.slots} text=${`${node.running} / ${node.slots}`} />
        ${!isLost && html`<${Bar} label="CPU" part=${node.load.cpu_percent / 100} text=${`${Math.round(node.load.cpu_percent)} %`} />
        <${Bar} label="Memory" hotAt=${0.92} part=${node.load.memory_used_mb / node.memory_mb} text=${`${mebibytes(node.load.memory_used_mb)} of ${mebibytes(node.memory_mb)}`} />`}
        ${usage?.disk_bytes > 0 && html`<${Bar} label="Disk" hotAt=${HOT} part=${1 - usage.free_bytes / usage.disk_bytes}
          text=${`${size(usage.free_bytes)} free of ${size(usage.disk_bytes)}`} />`}
      </section>
      <${Facts} node=${node} usage=${usage} isLost=${isLost} />
    </div>
    <${Running} node=${node} />
    ${!isSilent && html`<${Storage} ...${storage} />`}`;
}

function Facts({ node, usage, isLost }) {
  const labels = Object.entries(node.labels);
  const rows = [
    ["Agent up for", usage?.uptime_seconds != null && !isLost && duration(usage.uptime_seconds * 1000)],
    ["Last seen", isLost && html`<${Ago} at=${node.last_seen} />`],
    ["Visitor until", node.visitor && clock(node.leaves_at)],
    ["Invited by", node.invited_by],
    ["Joined", node.joined_at && clock(node.joined_at)],
    ["Address", node.addresses[0]],
    ["System", [node.os, node.arch].filter(Boolean).join(" ")],
    ["Hardware", [node.cpus && plural(node.cpus, "CPU"), node.memory_mb && `${mebibytes(node.memory_mb)} of memory`, ...node.gpus].filter(Boolean).join(", ")],
    ["Labels", labels.length > 0 && labels.map(([key, value]) => html`<span class="tag"><bdi>${key}=${value}</bdi></span> `)],
    ["Octaskly", node.version],
  ];
  return html`<section class="card" aria-label="Details"><h2>Details</h2>
    <dl class="details">${rows.filter(([, value]) => value).map(([label, value]) => html`<${Fragment} key=${label}><dt>${label}</dt><dd>${value}</dd><//>`)}</dl></section>`;
}

/** The tasks that run there, members of arrays included. */
function Running({ node }) {
  const runs = useRuns(node.name);
  return html`<section class="card" aria-label="Running now"><div class="log-head"><h2>Running now</h2>
      <div class="end"><a class="button" href=${href(["tasks"], { node: node.name })}>All its tasks</a></div></div>
    ${runs === null && html`<p class="muted" role="status">Loading …</p>`}
    ${runs?.length === 0 && html`<p class="muted">Nothing runs there.</p>`}
    ${runs?.length > 0 && html`<div class="scroll"><table><thead><tr><th scope="col">Task</th><th scope="col" class="wide-only">Command</th><th scope="col" class="number">For</th></tr></thead>
      <tbody>${runs.slice(0, RUNS_MAX).map((run) => html`<tr key=${`${run.id} ${run.attempt}`}><td class="files-path"><a href=${href(["tasks", run.id])}><bdi>${titleOf(run)}</bdi></a></td>
        <td class="member-command wide-only"><code>${commandOf(run)}</code></td><td class="number nowrap">${elapsed(run.started_at ?? run.assigned_at, now.value)}</td></tr>`)}</tbody></table></div>`}
    ${runs?.length > RUNS_MAX && html`<p class="hint">The latest ${RUNS_MAX} of ${count(runs.length)}.</p>`}
  </section>`;
}

/** The attempts that run on a node, read again when tasks begin and end; null at first. */
function useRuns(name) {
  const { found, reader } = useReader(
    (signal) => get("/api/v1/attempts", { since_s: 0, limit: 1000 }, { quiet: true, signal }), [name]);
  useEffect(() => {
    const soon = () => reader.current.soon(REFRESH_MS);
    const ends = [listen("task", soon), listen("reset", soon)];
    reader.current.read();
    return () => ends.forEach((end) => end());
  }, [name]);
  return found && found.running.filter(({ worker_id: node }) => node === name);
}

const NONE = { usage: null, items: [], problem: null };

/** What takes up space on a node, the largest first, and what reads the next page of it. */
function useStorage(id, isLost) {
  const [found, setFound] = useState(NONE);
  const read = async (offset, signal) => {
    try {
      const page = await get(`/api/v1/nodes/${encodeURIComponent(id)}/storage`, { limit: PAGE, offset }, { quiet: true, signal });
      setFound((before) => ({ usage: page, items: [...before.items.slice(0, offset), ...page.items], problem: null }));
    } catch (wrong) {
      if (signal?.aborted) return;
      if (wrong.status === undefined) throw wrong;
      setFound((before) => ({ ...before, problem: wrong }));
    }
  };
  useEffect(() => {
    const over = new AbortController();
    if (!isLost) read(0, over.signal);
    return () => over.abort();
  }, [id, isLost]);
  return { ...found, read };
}

function Storage({ usage, items, problem, read }) {
  const [isAsked, ask] = useState(false);
  return html`<section class="card files storage" aria-label="Stored files">
    <div class="log-head"><h2>Stored files</h2>
      <div class="end row"><${Button} onPress=${() => read(0)}>Refresh<//>
        ${may.manage.value && html`<${Button} kind="danger" onPress=${() => ask(true)}>Forget ended tasks …<//>`}</div></div>
    ${problem && html`<p class="problem" role="alert">${problem.error}${problem.hint && ` – ${problem.hint}`}</p>`}
    ${usage === null && !problem && html`<p class="muted" role="status">Loading …</p>`}
    ${usage && html`<${Sums} usage=${usage} /><${Items} items=${items} total=${usage.total} more=${() => read(items.length)} />`}
    ${isAsked && html`<${Forget} onClose=${() => ask(false)} onDone=${() => read(0)} />`}
  </section>`;
}

function Sums({ usage }) {
  const { files_bytes: files, files_quota_bytes: most, outputs_bytes: outputs, logs_bytes: logs, output_quota_bytes: logsMost } = usage;
  return html`<div class="storage-sums">
    <${Bar} label="Files" hotAt=${HOT} part=${files / most} text=${`${size(files)} of ${size(most)}`} />
    <${Bar} label="Logs" hotAt=${HOT} part=${logs / logsMost} text=${`${size(logs)} of ${size(logsMost)}`} />
    <p><span class="muted">Outputs of tasks:</span> ${size(outputs)}</p></div>
    <details class="hint"><summary>When are they deleted?</summary><p>A file is kept while a task needs it, and for an hour after its last use. After that it may be deleted to free space, the least recently used first; the agent's <code>--files-quota</code> sets how much space files may take. Outputs are kept until the time shown.</p></details>`;
}

const KINDS = { tree: "files of tasks", file: "single file", outputs: "outputs" };

function Items({ items, total, more }) {
  if (total === 0) return html`<p class="muted">No files and no outputs.</p>`;
  return html`<div class="scroll files-scroll" tabindex="0" role="region" aria-label="List of stored files"><table>
      <thead><tr><th scope="col" class="number">Size</th><th scope="col">What</th><th scope="col" class="number wide-only">Files</th><th scope="col">Kept</th></tr></thead>
      <tbody>${items.map(({ kind, bytes, files, sha256, task, kept_until: until }) => html`<tr key=${`${kind} ${sha256 ?? task} ${until}`}>
        <td class="number nowrap">${size(bytes)}</td>
        <td class="files-path">${task ? html`<a href=${href(["tasks", task])}>${task}</a>` : html`<span title=${sha256}>${sha256.slice(0, SHORT)}…</span>`} <span class="muted">${KINDS[kind] ?? kind}</span></td>
        <td class="number wide-only">${files == null ? "" : count(files)}</td>
        <td>${Date.parse(until) > now.value ? html`until <time datetime=${until}>${clock(until)}</time>` : "until space is needed"}</td></tr>`)}</tbody></table></div>
    ${items.length < total && html`<p class="more"><${Button} onPress=${more}>Show more of ${plural(total, "item")}<//></p>`}`;
}

const AGES = [["0", "all ended tasks", "--all-ended"], ["3600", "tasks that ended more than an hour ago", "--older-than 1h"],
  ["86400", "tasks that ended more than a day ago", "--older-than 1d"], ["604800", "tasks that ended more than a week ago", "--older-than 7d"]];

/** The same as `octaskly forget`. */
function Forget({ onClose, onDone }) {
  const [age, setAge] = useState("86400");
  const forget = async () => {
    const { forgotten } = await post("/api/v1/forget", { older_than_s: Number(age) });
    tell(forgotten === null ? "Still in progress: there are many tasks" : `${plural(forgotten, "task")} forgotten`, { kind: "good" });
    onClose();
    onDone();
  };
  return html`<${Dialog} title="Forget ended tasks?" onClose=${onClose}><div class="forget">
    <p>Forgotten tasks are deleted on all nodes, with their results and output files. This cannot be undone. Queued and running tasks are kept.</p>
    <p><label>Forget <select value=${age} onChange=${(event) => setAge(event.currentTarget.value)}>
      ${AGES.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}</select></label></p>
    <${Command} text=${`octaskly forget ${AGES.find(([value]) => value === age)[2]}`} />
    <div class="row dialog-end"><${Button} onPress=${onClose}>Cancel<//><${Button} kind="danger" onPress=${forget}>Forget them<//></div></div>
  <//>`;
}
