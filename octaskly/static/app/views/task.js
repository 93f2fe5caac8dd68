import { del, get, post } from "../api.js";
import { ago, bytes, clock, count, duration, plural, shownCommand, size, titleOf } from "../format.js";
import { useKeys } from "../keys.js";
import { html, useCallback, useEffect, useRef, useState } from "../lib.js";
import { listen } from "../live.js";
import { go, href } from "../router.js";
import { now, tell } from "../store.js";
import { Button, Copy, Dialog, Empty, State } from "../ui.js";
import { Files } from "./files.js";
import { Members, Progress } from "./members.js";
import { asCli, asCurl, asked, isOfItems, limitsOf, needsOf, unread } from "./copies.js";
import { Log } from "./log.js";
import { Why, isHopeless, useExplained } from "./why.js";

const SOON_MS = 150;
const MEMBERS_MS = 1000; //: of an array: they may be many
const RETRY_MS = 2000;

/** One task, or member of an array, or array: what it is, where, why there, its output. */
export function Task({ id }) {
  const { task, attempts, problem, reload } = useTask(id);
  useKeys({ Escape: () => go(["tasks"]) });
  if (problem?.status === 404) {
    return html`<${Empty} title="There is no such task"><p>${id} may have been forgotten, as it ended long ago.</p>
      <p><a href=${href(["tasks"])}>All tasks</a></p><//>`;
  }
  if (task === null) return html`<p class="muted" role="status">${problem ? `${problem.error}; asking again …` : "Loading …"}</p>`;
  return html`<${Whole} task=${task} attempts=${attempts} reload=${reload} />`;
}

function Whole({ task, attempts, reload }) {
  const told = useExplained(task.id, task.status);
  const isStuck = isHopeless(told);
  const array = /^(.+)\.(\d+)$/.exec(task.id)?.[1];
  const actions = html`<${Actions} task=${task} reload=${reload} />`;
  return html`<div class="task">
    <nav aria-label="Path" class="crumbs"><a href=${href(["tasks"])}>Tasks</a>
      ${array && html` / <a href=${href(["tasks", array])}>${array}</a>`} / <span>${task.id}</span></nav>
    <div class="head"><h1>${titleOf(task)}</h1><${State} of=${task.status} /><${Standing} task=${task} />
      ${!isStuck && html`<div class="end row">${actions}</div>`}</div>
    ${isStuck && html`<div class="warning"><p><strong>Will not start until a node with ${needsOf(task.requires).join(", ")} joins.</strong></p>
      <div class="row">${actions}</div></div>`}
    <div class="task-command card"><pre><code>${shownCommand(task.command)}</code></pre>
      <div class="row"><${Copy} text=${task.command} label="Copy command" /><${Copy} text=${asCli(task)} label="Copy as CLI" />
        ${isOfItems(task) ? html`<span class="muted">items.txt is to hold the items, one a line</span>`
          : html`<${Copy} text=${unread(task) + asCurl(asked(task), location.origin)} label="Copy as curl" />`}</div></div>
    ${task.array && html`<${Progress} array=${task.array} />`}
    <div class="task-parts">
      <${Placement} task=${task} attempts=${attempts} told=${told} />
      <${Details} task=${task} />
    </div>
    <${Files} task=${task} />
    ${task.array && html`<${Members} array=${task} />`}
    ${!task.array && (task.status !== "queued" || attempts.length > 0) && html`<${Log} id=${task.id} attempts=${attempts} />`}
  </div>`;
}

/** The task and its attempts, read again when something happens to it. */
function useTask(id) {
  const [found, setFound] = useState({ task: null, attempts: [], problem: null });
  const timer = useRef(0);
  const reload = useCallback(async () => {
    clearTimeout(timer.current);
    timer.current = 0;
    const path = `/api/v1/tasks/${encodeURIComponent(id)}`;
    try {
      const [task, { attempts }] = await Promise.all([get(path, {}, { quiet: true }), get(`${path}/attempts`, {}, { quiet: true })]);
      setFound({ task, attempts, problem: null });
    } catch (problem) {
      if (problem.status === undefined) throw problem;
      setFound((before) => ({ ...before, problem }));
      if (problem.status !== 404) timer.current = setTimeout(reload, RETRY_MS);
    }
  }, [id]);
  useEffect(() => {
    reload();
    const within = (ms) => {
      timer.current ||= setTimeout(reload, ms);
    };
    const mine = (event) => {
      if (event.id === id) within(SOON_MS);
      else if (event.id.startsWith(`${id}.`)) within(MEMBERS_MS);
    };
    const ends = [listen("task", mine), listen("reset", () => within(SOON_MS))];
    return () => {
      ends.forEach((end) => end());
      clearTimeout(timer.current);
    };
  }, [id]);
  return { ...found, reload };
}

/** Since when, or how long. */
function Standing({ task }) {
  if (task.completed_at) {
    const code = task.reason === "exit" || task.reason === null ? `exit code ${task.exit_code}` : `${task.reason}${task.signal ? ` ${task.signal}` : ""}`;
    return html`<span class="muted">${task.status === "cancelled" ? "" : `${code}, `}took ${duration(task.duration_ms)}, ${ago(task.completed_at, now.value)}</span>`;
  }
  return html`<span class="muted" title=${task.created_at}>submitted ${ago(task.created_at, now.value)}</span>`;
}

const FINAL = new Set(["completed", "failed", "cancelled"]);

function Actions({ task, reload }) {
  const [isSure, setSure] = useState(false);
  const path = `/api/v1/tasks/${encodeURIComponent(task.id)}`;
  const cancel = async (force) => {
    setSure(false);
    await del(path, { force: force ? "true" : "" });
    tell(`${titleOf(task)} is cancelled`, { kind: "good" });
    await reload();
  };
  const retry = async () => {
    const again = await post(`${path}/retry`);
    tell(`Submitted again as ${again.id}`, { kind: "good" });
    go(["tasks", again.id]);
  };
  const edit = canEdit(task) && html`<a class="button" href=${href(["submit"], { from: task.id })}>Edit and submit again</a>`;
  if (FINAL.has(task.status)) return html`${edit}<${Button} onPress=${retry}>Retry<//>`;
  if (task.status === "queued") return html`${edit}<${Button} kind="danger" onPress=${() => cancel(false)}>Cancel<//>`;
  return html`${task.array && html`<${Button} onPress=${() => cancel(false)} title="End what has not begun; what runs goes on">Cancel the rest<//>`}
    <${Button} kind="danger" onPress=${() => setSure(true)}>${task.array ? "End all" : "End"}<//>
    ${isSure && html`<${Dialog} title="End what runs?" onClose=${() => setSure(false)}>
      <p>Its whole process tree is told to end, and killed if it does not. What it has written is kept.</p>
      <div class="row dialog-end"><${Button} onPress=${() => setSure(false)}>Let it run<//>
        <${Button} kind="danger" onPress=${() => cancel(true)}>End it now<//></div>
    <//>`}`;
}

/** Of items and of what a task reads the API shows too little to ask for the same. */
const canEdit = (task) => !isOfItems(task) && !task.stdin_bytes && !task.stdin_file;

/** Why it is queued or why it is where it is, and every attempt. */
function Placement({ task, attempts, told }) {
  const title = task.array ? "How it goes" : task.status === "queued" ? "Why it is queued" : FINAL.has(task.status) ? "Where it ran" : "Where it runs";
  return html`<section class="card" aria-label=${title}><h2>${title}</h2>
    <${Why} told=${told} />
    ${task.detail && html`<p class="problem">${task.detail}</p>`}
    ${attempts.length > 0 && html`<div class="scroll"><table class="attempts"><caption class="visually-hidden">Attempts</caption>
      <thead><tr><th scope="col" class="number">Attempt</th><th scope="col">Node</th><th scope="col">State</th><th scope="col">Ended by</th>
        <th scope="col">Started</th><th scope="col" class="number">Took</th></tr></thead>
      <tbody>${attempts.map((one) => html`<tr key=${one.attempt}><td class="number">${one.attempt}</td>
        <td><a href=${href(["nodes", one.worker_id])}>${one.worker_id}</a></td><td><${State} of=${one.status} /></td>
        <td>${endOf(one)}</td><td class="nowrap">${one.started_at ? clock(one.started_at) : "–"}</td>
        <td class="number nowrap">${duration(one.duration_ms)}</td></tr>`)}</tbody></table></div>`}
  </section>`;
}

function endOf({ reason, exit_code: code, signal, detail }) {
  if (reason === null) return "–";
  const what = reason === "exit" ? `exit code ${code}` : `${reason}${signal ? ` ${signal}` : ""}`;
  return detail ? `${what}: ${detail}` : what;
}

function Details({ task }) {
  const pairs = (given) => Object.entries(given ?? {}).filter(([, value]) => value !== null && !isEmpty(value));
  const links = (ids) => ids.map((id, n) => html`${n ? ", " : ""}<a href=${href(["tasks", id])}>${id}</a>`);
  const rows = [
    ["Id", html`<code>${task.id}</code>`],
    ["Labels", pairs(task.labels).length > 0 && pairs(task.labels).map(([name, value]) => html`<a class="tag label" key=${name}
      href=${href(["tasks"], { label: `${name}=${value}` })}>${value ? `${name}=${value}` : name}</a> `)],
    ["Submitted", task.created_at && html`<time datetime=${task.created_at}>${clock(task.created_at)}</time>`],
    ["Queued for", task.queue_ms != null && duration(task.queue_ms)],
    ["Started", task.started_at && clock(task.started_at)],
    ["Ended", task.completed_at && clock(task.completed_at)],
    ["CPU time", task.cpu_seconds != null && duration(task.cpu_seconds * 1000)],
    ["Memory", task.memory_peak_mb != null && `${bytes(task.memory_peak_mb * 1024 * 1024)} at most`],
    ["Needs", needsOf(task.requires).join(", ")],
    ["Limits", limitsOf(task.limits).join(", ")],
    ["Time limit", task.timeout && `${duration(task.timeout * 1000)}${task.status === "queued" ? " once it runs" : ""}`],
    ["Priority", task.priority || ""],
    ["Retries", task.retries ? `${task.retries}, on ${task.retry_on.join(", ")}` : ""],
    ["After", task.after?.length > 0 && html`${links(task.after)}${task.on === "success" ? "" : ` (${task.on})`}`],
    ["Repeats", task.retry_of && links([task.retry_of])],
    ["Folder", task.cwd ?? (task.workdir === "scratch" ? "a fresh one" : "")],
    ["Variables", pairs(task.env).length > 0 && html`<details><summary>${count(pairs(task.env).length)}</summary>
      <pre class="env">${pairs(task.env).map(([name, value]) => `${name}=${value}`).join("\n")}</pre></details>`],
    ["Standard input", task.stdin_file ? "a file that was sent along" : task.stdin_bytes ? bytes(task.stdin_bytes) + (task.stdin_freed ? ", freed" : "") : ""],
    ["Inputs", task.inputs?.join(", ")],
    ["Outputs", task.outputs?.map(({ path, bytes: many, files }) => `${path}${many == null ? "" : ` (${files == null ? "" : `${plural(files, "file")}, `}${size(many)})`}`).join(", ")],
    ["Told at its end", task.notify_url],
  ];
  return html`<section class="card" aria-label="Details"><h2>Details</h2>
    <dl class="details">${rows.filter(([, value]) => value).map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl></section>`;
}

const isEmpty = (value) => typeof value === "object" && Object.keys(value).length === 0;
