/** How far an array is, and its members. */

import { get } from "../api.js";
import { commandOf, count, duration, plural } from "../format.js";
import { html, useEffect, useState } from "../lib.js";
import { href } from "../router.js";
import { State } from "../ui.js";

const STATES = ["completed", "failed", "cancelled", "running", "queued"];
const PAGE = 50;

/** Members by state, as one bar; the words below say the same. */
export function Progress({ array, isSmall = false }) {
  const ended = array.completed + array.failed + array.cancelled;
  const text = `${count(ended)} of ${count(array.total)} ended`;
  const parts = STATES.filter((state) => array[state] > 0);
  return html`<div class=${isSmall ? "progress small" : "progress"}>
    <div class="progress-track" role="progressbar" aria-label="Members that ended" aria-valuemin="0" aria-valuemax=${array.total}
      aria-valuenow=${ended} aria-valuetext=${text}>
      ${parts.map((state) => html`<span key=${state} class=${`progress-part part-${state}`} style=${{ flexGrow: array[state] }}></span>`)}</div>
    <p class="progress-text"><strong>${text}</strong>
      ${parts.map((state) => html`<span key=${state} class=${`state state-${state}`}>${count(array[state])} ${state}</span>`)}</p>
  </div>`;
}

/** How far an array is, in a few words: `27 ok, 3 failed of 30`. */
export function told(array) {
  const words = { completed: "ok", failed: "failed", cancelled: "cancelled", running: "running" };
  const parts = Object.keys(words).filter((state) => array[state] > 0);
  return `${parts.map((state) => `${count(array[state])} ${words[state]}`).join(", ") || "0"} of ${count(array.total)}`;
}

/** The members of an array in one state, those that failed first. */
export function Members({ array }) {
  const [status, setStatus] = useState("failed");
  const [found, setFound] = useState({ tasks: [], total: null });
  const [limit, setLimit] = useState(PAGE);
  const { failed, running, completed, cancelled } = array.array;
  useEffect(() => {
    const over = new AbortController();
    get("/api/v1/tasks", { array: array.id, status, limit }, { quiet: true, signal: over.signal })
      .then(setFound, (problem) => {
        if (problem.status === undefined && !over.signal.aborted) throw problem;
      });
    return () => over.abort();
  }, [array.id, status, limit, failed, running, completed, cancelled]);
  const choose = (state) => {
    setLimit(PAGE);
    setStatus(state);
  };
  return html`<section class="card" aria-label="Members"><div class="log-head"><h2>Members</h2>
      <div class="states end" role="group" aria-label="State of the members">
        ${["failed", "running", "completed", "cancelled"].map((state) => html`<button type="button" class="chip" key=${state}
          aria-pressed=${status === state} onClick=${() => choose(state)}><${State} of=${state} /> <span class="muted">${count(array.array[state])}</span></button>`)}</div></div>
    ${found.tasks.length === 0 ? html`<p class="muted">${found.total === null ? "Loading …" : `No member is ${status}.`}</p>` : html`<div class="scroll"><table>
      <thead><tr><th scope="col">Member</th><th scope="col">State</th><th scope="col">Command</th><th scope="col">Node</th><th scope="col" class="number">Exit</th><th scope="col" class="number">Took</th></tr></thead>
      <tbody>${found.tasks.map((task) => html`<tr key=${task.id}><td><a href=${href(["tasks", task.id])}>${task.id.slice(array.id.length)}</a></td>
        <td><${State} of=${task.status} /></td><td class="member-command"><code>${commandOf(task)}</code></td><td>${task.worker_id ?? ""}</td>
        <td class="number">${task.exit_code ?? ""}</td><td class="number nowrap">${task.duration_ms == null ? "" : duration(task.duration_ms)}</td></tr>`)}</tbody></table></div>
      ${found.total > found.tasks.length && html`<p class="more"><button type="button" class="button" onClick=${() => setLimit(Math.min(1000, limit * 4))}
        disabled=${limit >= 1000}>Show more of ${plural(found.total, "member")}</button></p>`}`}
  </section>`;
}
