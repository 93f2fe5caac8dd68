/** One node: what it is, and what takes up room on its disk. */

import { get, post } from "../api.js";
import { clock, count, mebibytes, plural, size } from "../format.js";
import { useKeys } from "../keys.js";
import { html, useEffect, useState } from "../lib.js";
import { go, href } from "../router.js";
import { mesh, nodes, now, tell } from "../store.js";
import { Bar, Button, Command, Dialog, Empty, State } from "../ui.js";
import { Role } from "./role.js";

const PAGE = 50;
const HOT = 0.9;
const SHORT = 12; //: characters of a digest

export function Node({ name }) {
  useKeys({ Escape: () => go(["nodes"]) });
  const node = nodes.value.find((one) => one.name === name || one.id === name);
  if (mesh.value === null) return html`<p class="muted" role="status">Asking the mesh…</p>`;
  if (node === undefined) return html`<${Empty} title="There is no such node"><p><a href=${href(["nodes"])}>All nodes</a></p><//>`;
  const standby = mesh.value.standbys.find(({ id }) => id === node.id);
  const facts = [node.addresses[0], [node.os, node.arch].filter(Boolean).join(" "), `Octaskly ${node.version}`];
  return html`<div class="task">
    <nav aria-label="Path" class="crumbs"><a href=${href(["nodes"])}>Nodes</a> / <span>${node.name}</span></nav>
    <div class="head"><h1>${node.name}</h1><${State} of=${node.state} /><${Role} node=${node} standby=${standby?.state} />
      <span class="muted">${facts.filter(Boolean).join(" · ")}</span>
      <div class="end"><a class="button" href=${href(["tasks"], { node: node.name })}>Its tasks</a></div></div>
    <section class="card node-load" aria-label="Load">
      <${Bar} label="Slots" kind="slots" part=${node.running / node.slots} text=${`${node.running} / ${node.slots}`} />
      <${Bar} label="CPU" part=${node.load.cpu_percent / 100} text=${`${Math.round(node.load.cpu_percent)} %`} />
      <${Bar} label="Memory" hotAt=${0.92} part=${node.load.memory_used_mb / node.memory_mb} text=${`${mebibytes(node.load.memory_used_mb)} of ${mebibytes(node.memory_mb)}`} />
    </section>
    ${node.state === "lost" ? html`<p class="muted">What is on its disk shows when it is back.</p>` : html`<${Storage} key=${node.id} id=${node.id} />`}
  </div>`;
}

const NONE = { usage: null, items: [], problem: null };

/** What takes up room there, the largest first, a page at a time. */
function Storage({ id }) {
  const [{ usage, items, problem }, setFound] = useState(NONE);
  const [isAsked, ask] = useState(false);
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
    read(0, over.signal);
    return () => over.abort();
  }, [id]);
  return html`<section class="card files storage" aria-label="Room">
    <div class="log-head"><h2>Room on its disk</h2>
      <div class="end row"><${Button} onPress=${() => read(0)}>Look again<//><${Button} kind="danger" onPress=${() => ask(true)}>Forget ended tasks<//></div></div>
    ${problem && html`<p class="problem" role="alert">${problem.error}${problem.hint && ` – ${problem.hint}`}</p>`}
    ${usage === null && !problem && html`<p class="muted" role="status">Looking …</p>`}
    ${usage && html`<${Sums} usage=${usage} /><${Items} items=${items} total=${usage.total} more=${() => read(items.length)} />`}
    ${isAsked && html`<${Forget} onClose=${() => ask(false)} onDone=${() => read(0)} />`}
  </section>`;
}

function Sums({ usage }) {
  const { files_bytes: files, files_quota_bytes: most, outputs_bytes: outputs, logs_bytes: logs, output_quota_bytes: logsMost, free_bytes: free } = usage;
  return html`<div class="storage-sums">
    <${Bar} label="Files" hotAt=${HOT} part=${files / most} text=${`${size(files)} of ${size(most)}`} />
    <${Bar} label="Logs" hotAt=${HOT} part=${logs / logsMost} text=${`${size(logs)} of ${size(logsMost)}`} />
    <p>Outputs: <strong>${size(outputs)}</strong> <span class="muted">· free on the disk: ${size(free)}</span></p></div>
    <p class="hint">Files stay while a task needs them, and an hour after their last use. Then they are deleted, those first that were not used for the longest time, when others need the room; <code>--files-quota</code> of the agent says how much they may take. Outputs are kept until the time below.</p>`;
}

const KINDS = { tree: "files of tasks", file: "single file", outputs: "outputs" };

function Items({ items, total, more }) {
  if (total === 0) return html`<p class="muted">It keeps no files and no outputs.</p>`;
  return html`<div class="scroll files-scroll" tabindex="0" role="region" aria-label="What takes up room"><table>
      <thead><tr><th scope="col" class="number">Room</th><th scope="col">What</th><th scope="col" class="number wide-only">Files</th><th scope="col">Kept</th></tr></thead>
      <tbody>${items.map(({ kind, bytes, files, sha256, task, kept_until: until }) => html`<tr key=${`${kind} ${sha256 ?? task} ${until}`}>
        <td class="number nowrap">${size(bytes)}</td>
        <td class="files-path">${task ? html`<a href=${href(["tasks", task])}>${task}</a>` : html`<span title=${sha256}>${sha256.slice(0, SHORT)}…</span>`} <span class="muted">${KINDS[kind] ?? kind}</span></td>
        <td class="number wide-only">${files == null ? "" : count(files)}</td>
        <td>${Date.parse(until) > now.value ? html`until <time datetime=${until}>${clock(until)}</time>` : "while there is room"}</td></tr>`)}</tbody></table></div>
    ${items.length < total && html`<p class="more"><${Button} onPress=${more}>Show more of ${plural(total, "item")}<//></p>`}`;
}

const AGES = [["0", "all that have ended", "--all-ended"], ["3600", "those that ended an hour ago or earlier", "--older-than 1h"],
  ["86400", "those that ended a day ago or earlier", "--older-than 1d"], ["604800", "those that ended a week ago or earlier", "--older-than 7d"]];

/** What `octaskly forget` does, in its words. */
function Forget({ onClose, onDone }) {
  const [age, setAge] = useState("86400");
  const forget = async () => {
    const { forgotten } = await post("/api/v1/forget", { older_than_s: Number(age) });
    tell(forgotten === null ? "Still in progress, because there are many" : `${plural(forgotten, "task")} forgotten`, { kind: "good" });
    onClose();
    onDone();
  };
  return html`<${Dialog} title="Forget ended tasks?" onClose=${onClose}><div class="forget">
    <p>Forgotten tasks and their results are deleted on all nodes, for good. So are their output files, within minutes. What waits or runs stays.</p>
    <p><label>Forget <select value=${age} onChange=${(event) => setAge(event.currentTarget.value)}>
      ${AGES.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}</select></label></p>
    <${Command} text=${`octaskly forget ${AGES.find(([value]) => value === age)[2]}`} />
    <div class="row dialog-end"><${Button} onPress=${onClose}>Keep them<//><${Button} kind="danger" onPress=${forget}>Forget them now<//></div></div>
  <//>`;
}
