import { del, get, mayPass, post } from "../api.js";
import { ago, clock, commandOf, duration, elapsed, mebibytes, plural, shownCommand, size, titleOf, visible } from "../format.js";
import { useKeys } from "../keys.js";
import { Fragment, html, useEffect, useRef, useState } from "../lib.js";
import { listen } from "../live.js";
import { useReader } from "../reading.js";
import { go, href } from "../router.js";
import { may } from "../session.js";
import { now, tell } from "../store.js";
import { Button, Copy, Dialog, Empty, State } from "../ui.js";
import { Files } from "./files.js";
import { Members, Progress, howOf } from "./members.js";
import { canHold } from "./asking.js";
import { asCli, asCurl, asked, isOfItems, limitsOf, needsOf, unread } from "./copies.js";
import { Log } from "./log.js";
import { Why, isHopeless, useExplained } from "./why.js";

const MEMBER = /^(.+)\.(\d+)$/;
const SOON_MS = 150;
const MEMBERS_MS = 1000; //: of an array: they may be many

/** One task, array, or member of an array: what it is, where and why it runs, its output. */
export function Task({ id }) {
  const { task, attempts, problem, reload } = useTask(id);
  useKeys({ Escape: () => go(["tasks"]) });
  if (problem?.status === 404) {
    return html`<${Empty} title="There is no such task"><p>${visible(id)} was never here, or ended long ago and was forgotten.</p>
      <p><a href=${href(["tasks"])}>All tasks</a></p><//>`;
  }
  if (task === null) return html`<p class="muted" role="status">${problem ? `${problem.error}${mayPass(problem) ? "; retrying …" : ""}` : "Loading …"}</p>`;
  return html`<${Whole} task=${task} attempts=${attempts} reload=${reload} />`;
}

function Whole({ task, attempts, reload }) {
  const told = useExplained(task.id, task.status);
  const isStuck = isHopeless(told);
  const array = MEMBER.exec(task.id)?.[1];
  // Of a task that waits, the reason comes first; of others, what they did.
  const isWaiting = task.status === "queued";
  const hasWhy = !task.array || !FINAL.has(task.status);
  const parts = html`<div class="task-parts" key="parts">${hasWhy && html`<${Placement} task=${task} attempts=${attempts} told=${told} />`}<${Details} task=${task} /></div>`;
  return html`<div class="task">
    <nav aria-label="Path" class="crumbs"><a href=${href(["tasks"])}>Tasks</a>
      ${array && html` / <a href=${href(["tasks", array])}>${array}</a>`} / <span>${task.id}</span></nav>
    <div class="head"><h1><bdi>${titleOf(task)}</bdi></h1><${State} of=${task.status} /><${Standing} task=${task} />
      ${may.submit.value && html`<div class="end row"><${Actions} task=${task} reload=${reload} /></div>`}</div>
    ${isStuck && html`<div class="warning"><p><strong>Will not start until a node with ${needsOf(task.requires).join(", ")} joins.</strong></p></div>`}
    <${What} task=${task} />
    ${task.detail && html`<p class="problem">${visible(task.detail)}</p>`}
    ${task.array && html`<${Progress} array=${task.array} id=${task.id} />`}
    ${isWaiting && parts}
    <${Files} task=${task} />
    ${task.array && html`<${Members} array=${task} />`}
    ${!task.array && (task.status !== "queued" || attempts.length > 0) && html`<${Log} key=${task.id} id=${task.id} attempts=${attempts} isCall=${Boolean(task.call)} />`}
    ${!isWaiting && parts}
  </div>`;
}

/** What a task runs: a Python call, or a command, which can be copied in several forms. */
function What({ task }) {
  if (task.call) {
    return html`<div class="task-command card"><pre><code>${commandOf(task)}</code></pre><p class="hint">A Python call. Its caller gets the result; below is what it printed.</p></div>`;
  }
  return html`<div class="task-command card"><pre><code>${shownCommand(task.command)}</code></pre>
    <div class="row"><${Copy} text=${task.command} label="Copy command" /><${Copy} text=${asCli(task)} label="Copy as CLI" />
      ${isOfItems(task) ? html`<span class="muted">write the items into items.txt, one per line</span>`
        : html`<${Copy} text=${unread(task) + asCurl(asked(task), location.origin)} label="Copy as curl" />`}</div></div>`;
}

/** The task and its attempts, read again when it changes. */
function useTask(id) {
  const { found, problem, reader } = useReader(async (signal) => {
    const path = `/api/v1/tasks/${encodeURIComponent(id)}`;
    const [task, { attempts }] = await Promise.all([get(path, {}, { quiet: true, signal }), get(`${path}/attempts`, {}, { quiet: true, signal })]);
    return { task, attempts };
  }, [id]);
  useEffect(() => {
    const mine = (event) => {
      if (event.id === id) reader.current.soon(SOON_MS);
      else if (event.id.startsWith(`${id}.`)) reader.current.soon(MEMBERS_MS);
    };
    const ends = [listen("task", mine), listen("reset", () => reader.current.soon(SOON_MS))];
    reader.current.read();
    return () => ends.forEach((end) => end());
  }, [id]);
  const { task = null, attempts = [] } = found ?? {};
  return { task, attempts, problem, reload: () => reader.current.read() };
}

/** Its age, or its end. */
function Standing({ task }) {
  if (task.completed_at) {
    const how = task.array || task.status === "cancelled" ? "" : `${howOf(task)}, `;
    return html`<span class="muted">${how}took ${duration(task.duration_ms)}, ${ago(task.completed_at, now.value)}</span>`;
  }
  if (task.status === "running" && task.started_at) return html`<span class="muted" title=${task.started_at}>for ${elapsed(task.started_at, now.value)}</span>`;
  return html`<span class="muted" title=${task.created_at}>submitted ${ago(task.created_at, now.value)}</span>`;
}

const FINAL = new Set(["completed", "failed", "cancelled"]);

function Actions({ task, reload }) {
  const [isSure, setSure] = useState(false);
  const path = `/api/v1/tasks/${encodeURIComponent(task.id)}`;
  const cancel = async (force) => {
    setSure(false);
    await del(path, { force: force ? "true" : "" });
    tell(`Cancelled ${titleOf(task)}`, { kind: "good" });
    await reload();
  };
  const retry = async () => {
    const again = await post(`${path}/retry`);
    tell(`Submitted again as ${again.id}`, { kind: "good" });
    go(["tasks", again.id]);
  };
  const sure = isSure && html`<${Dialog} title=${task.array ? "Cancel the whole array?" : "Cancel this task?"} onClose=${() => setSure(false)}>
      <p>${task.array ? "Its queued members are cancelled, and all processes of its running members are ended." : "All its processes are ended."} The output so far is kept.</p>
      <div class="row dialog-end"><${Button} onPress=${() => setSure(false)}>Keep running<//>
        <${Button} kind="danger" onPress=${() => cancel(true)}>Cancel now<//></div>
    <//>`;
  const priority = waits(task) && html`<${ChangePriority} key=${task.id} task=${task} path=${path} reload=${reload} />`;
  const edit = canEdit(task) && html`<a class="button" href=${href(["submit"], { from: task.id })}>Edit and submit again</a>`;
  if (FINAL.has(task.status)) return html`${edit}<${Button} onPress=${retry}>Retry<//>`;
  if (task.status === "queued") return html`${edit}${priority}<${Button} kind="danger" onPress=${() => cancel(false)}>Cancel<//>${sure}`;
  return html`${priority}${task.array && html`<${Button} onPress=${() => cancel(false)} title="Running members continue">Cancel queued<//>`}
    <${Button} kind="danger" onPress=${() => setSure(true)}>${task.array ? "Cancel all" : "Cancel"}<//>${sure}`;
}

/** Returns true if it has a priority that counts: members have that of their array. */
const waits = (task) => !MEMBER.test(task.id) && (task.array ? task.array.queued > 0 : task.status === "queued");

/** A button with a dialog that asks for another priority. */
function ChangePriority({ task, path, reload }) {
  const [text, setText] = useState(null);
  const field = useRef(null);
  const close = () => setText(null);
  const change = async () => {
    if (!field.current.reportValidity()) return;
    await post(`${path}/reprioritize`, { priority: Number(text) });
    close();
    tell(`${titleOf(task)} has priority ${text} now`, { kind: "good" });
    await reload();
  };
  return html`<${Button} onPress=${() => setText(String(task.priority || 0))}>Priority …<//>
    ${text !== null && html`<${Dialog} title="Change the priority" onClose=${close}>
      <form onSubmit=${(event) => event.preventDefault()}><div class="field"><label for="priority">Priority</label>
        <input id="priority" ref=${field} type="number" min="-50" max="50" step="1" required autofocus value=${text} onInput=${(event) => setText(event.target.value)} />
        <p class="hint">-50 to 50; higher runs first. ${task.array ? "It counts for all members that wait." : "Among equal priorities, the submitters take turns."}</p></div>
      <div class="row dialog-end"><${Button} onPress=${close}>Leave it<//>
        <${Button} kind="primary" type="submit" onPress=${change}>Change<//></div></form>
    <//>`}`;
}

/** The API does not return items, stdin or the payload of a call; the form has only lines. */
const canEdit = (task) => !task.call && !isOfItems(task) && !task.stdin_bytes && !task.stdin_file && canHold({ timeout: task.timeout, ...asked(task) });

/** The explanation of its state, and every attempt. */
function Placement({ task, attempts, told }) {
  const title = task.array ? "Progress" : task.status === "queued" ? "Why it is queued" : FINAL.has(task.status) ? "Where it ran" : "Where it runs";
  return html`<section class="card" aria-label=${title}><h2>${title}</h2>
    <${Why} told=${told} />
    ${attempts.length > 0 && html`<div class="scroll"><table class="attempts"><caption class="visually-hidden">Attempts</caption>
      <thead><tr><th scope="col" class="number">Attempt</th><th scope="col">Node</th><th scope="col">State</th>
        <th scope="col" class="wide-only">Started</th><th scope="col" class="number">Took</th></tr></thead>
      <tbody>${attempts.map((one) => html`<tr key=${one.attempt}><td class="number">${one.attempt}</td>
        <td><a href=${href(["nodes", one.worker_id])}><bdi>${one.worker_id}</bdi></a></td><td><${State} of=${one.status} /> <span class="muted">${endOf(one)}</span></td>
        <td class="nowrap wide-only">${one.started_at ? clock(one.started_at) : "–"}</td>
        <td class="number nowrap">${duration(one.duration_ms)}</td></tr>`)}</tbody></table></div>`}
  </section>`;
}

/** How an attempt ended, if it did not simply succeed. */
function endOf(attempt) {
  if (attempt.reason === null || attempt.status === "completed") return "";
  return `${howOf(attempt)}${attempt.detail ? `: ${visible(attempt.detail)}` : ""}`;
}

function Details({ task }) {
  const pairs = (given) => Object.entries(given ?? {}).filter(([, value]) => value !== null && !isEmpty(value));
  const links = (ids) => ids.map((id, n) => html`${n ? ", " : ""}<a href=${href(["tasks", id])}>${id}</a>`);
  const rows = [
    ["Id", html`<code>${task.id}</code>`],
    ["Labels", pairs(task.labels).length > 0 && pairs(task.labels).map(([name, value]) => html`<a class="tag label" key=${name}
      href=${href(["tasks"], { label: `${name}=${value}` })}><bdi>${value ? `${name}=${value}` : name}</bdi></a> `)],
    ["Submitted", task.created_at && html`<time datetime=${task.created_at}>${clock(task.created_at)}</time>`],
    ["Queued for", task.queue_ms != null && duration(task.queue_ms)],
    ["Started", task.started_at && clock(task.started_at)],
    ["Ended", task.completed_at && clock(task.completed_at)],
    ["CPU time", task.cpu_seconds != null && duration(task.cpu_seconds * 1000)],
    ["Peak memory", task.memory_peak_mb != null && mebibytes(task.memory_peak_mb)],
    ["Needs", needsOf(task.requires).join(", ")],
    ["Limits", limitsOf(task.limits).join(", ")],
    ["Timeout", task.timeout ? duration(task.timeout * 1000) : "none"],
    ["Priority", task.priority || ""],
    ["Retries", task.retries ? `up to ${task.retries}, after ${task.retry_on.map((cause) => (typeof cause === "number" ? `exit code ${cause}` : cause)).join(" or ")}` : ""],
    ["After", task.after?.length > 0 && html`${links(task.after)}${AFTER[task.on] ?? ""}`],
    ["Retry of", task.retry_of && links([task.retry_of])],
    ["Folder", task.cwd ?? (task.workdir === "scratch" ? "scratch (new)" : "")],
    ["Environment", pairs(task.env).length > 0 && html`<details><summary>${plural(pairs(task.env).length, "variable")}</summary>
      <pre class="env">${pairs(task.env).map(([name, value]) => `${name}=${value}`).join("\n")}</pre></details>`],
    ["Stdin", task.stdin_file ? "an uploaded file" : task.stdin_bytes && !task.call ? size(task.stdin_bytes) + (task.stdin_freed ? ", deleted" : "") : ""],
    ["Inputs", task.inputs?.map(visible).join(", ")],
    ["Outputs", task.outputs?.map(({ path, bytes: many, files }) => `${visible(path)}${many == null ? "" : ` (${files == null ? "" : `${plural(files, "file")}, `}${size(many)})`}`).join(", ")],
    ["Webhook", task.notify_url],
  ];
  return html`<section class="card" aria-label="Details"><h2>Details</h2>
    <dl class="details">${rows.filter(([, value]) => value).map(([name, value]) => html`<${Fragment} key=${name}><dt>${name}</dt><dd>${value}</dd><//>`)}</dl></section>`;
}

const AFTER = { failure: " (runs if they fail)", any: " (runs however they end)" };

const isEmpty = (value) => typeof value === "object" && Object.keys(value).length === 0;
