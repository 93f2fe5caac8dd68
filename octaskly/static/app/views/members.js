/** The progress of an array, and its members. */

import { get } from "../api.js";
import { commandOf, count, duration, pace, plural, remaining, visible } from "../format.js";
import { html, useEffect, useState } from "../lib.js";
import { useReader } from "../reading.js";
import { href } from "../router.js";
import { State } from "../ui.js";

const STATES = ["completed", "failed", "cancelled", "running", "queued"];
const CHOICES = ["failed", "running", "completed", "cancelled"];
const PAGE = 50;

/**
 * The progress of an array as a bar and in words. Without `isSmall`, the members below
 * have the counts by state.
 */
export function Progress({ array, id, isSmall = false }) {
  const ended = endedOf(array);
  const text = `${count(ended)} of ${count(array.total)} ended`;
  const parts = STATES.filter((state) => array[state] > 0);
  const isOver = ended === array.total;
  return html`<div class=${isSmall ? "progress small" : "progress"}>
    <div class="progress-track" role="progressbar" aria-label="Members that ended" aria-valuemin="0" aria-valuemax=${array.total}
      aria-valuenow=${ended} aria-valuetext=${text}>
      ${parts.map((state) => html`<span key=${state} class=${`progress-part part-${state}`} style=${{ flexGrow: array[state] }}></span>`)}</div>
    <p class="progress-text">${isSmall
        ? html`${parts.map((state) => html`<span key=${state} class=${`state state-${state}`}>${count(array[state])} ${state}</span>`)}<span class="muted">of ${count(array.total)}</span>`
        : html`<strong>${text}</strong>`}
      ${!isOver && array.rate_per_s > 0 && html`<span>${pace(array.rate_per_s)}</span>`}
      ${!isOver && remaining(array.eta_ms) && html`<span>about ${remaining(array.eta_ms)}</span>`}</p>
    <${FirstFailure} failure=${array.first_failure} array=${id} />
  </div>`;
}

/** The failed member with the lowest number: the others often failed for the same reason. */
export function FirstFailure({ failure, array }) {
  if (!failure) return null;
  const { id, detail } = failure;
  return html`<p class="first-failure"><span class="muted">First failure:</span> <a href=${href(["tasks", id])}>${id.startsWith(array) ? id.slice(array.length) : id}</a>${" "}
    <span class="muted">${howOf(failure)}${detail ? `: ${visible(detail)}` : ""}</span></p>`;
}

/** How a task or an attempt ended: `exit code 3`, `signal 9`, `timeout`. */
export const howOf = ({ reason, exit_code: code, signal }) =>
  (reason === null || reason === "exit" ? `exit code ${code}` : `${reason}${signal ? ` ${signal}` : ""}`);

const endedOf = ({ completed, failed, cancelled }) => completed + failed + cancelled;

/** The progress of an array in a few words: `27 ok, 3 failed of 40, 2 min left`. */
export function told(array) {
  const words = { completed: "ok", failed: "failed", cancelled: "cancelled" };
  const parts = Object.keys(words).filter((state) => array[state] > 0);
  const left = endedOf(array) < array.total ? remaining(array.eta_ms) : "";
  return `${parts.map((state) => `${count(array[state])} ${words[state]}`).join(", ") || "0"} of ${count(array.total)}${left && `, ${left}`}`;
}

/** The members of an array in one state. It starts with the failed ones, if there are any. */
export function Members({ array }) {
  const [chosen, setStatus] = useState(null);
  const [limit, setLimit] = useState(PAGE);
  const { failed, running, completed, cancelled } = array.array;
  const status = chosen ?? CHOICES.find((state) => array.array[state] > 0) ?? "running";
  const { found, reader } = useReader(async (signal) => {
    const { tasks, total } = await get("/api/v1/tasks", { array: array.id, status, limit }, { quiet: true, signal });
    return { tasks, total, status };
  }, [array.id, status, limit]);
  useEffect(() => {
    reader.current.read();
  }, [array.id, status, limit, failed, running, completed, cancelled]);
  const { tasks, total } = found?.status === status ? found : { tasks: [], total: null };
  const unlisted = status === "cancelled" && total !== null ? cancelled - total : 0;
  const choose = (state) => {
    setLimit(PAGE);
    setStatus(state);
  };
  return html`<section class="card" aria-label="Members"><div class="log-head"><h2>Members</h2>
      <div class="states end" role="group" aria-label="State of the members">
        ${CHOICES.map((state) => html`<button type="button" class="chip" key=${state}
          aria-pressed=${status === state} onClick=${() => choose(state)}><${State} of=${state} /> <span class="muted">${count(array.array[state])}</span></button>`)}</div></div>
    ${unlisted > 0 && html`<p class="hint">Not listed: ${plural(unlisted, "member")} that never started.</p>`}
    ${tasks.length === 0 ? unlisted <= 0 && html`<p class="muted">${total === null ? "Loading …" : status === "failed" ? "No member has failed." : `No member is ${status}.`}</p>` : html`<div class="scroll"><table>
      <thead><tr><th scope="col">Member</th><th scope="col">Command</th><th scope="col" class="wide-only">Node</th><th scope="col" class="number">Exit</th><th scope="col" class="number">Took</th></tr></thead>
      <tbody>${tasks.map((task) => html`<tr key=${task.id}><td><a href=${href(["tasks", task.id])}>${task.id.slice(array.id.length)}</a></td>
        <td class="member-command"><code>${commandOf(task)}</code></td><td class="wide-only">${task.worker_id ?? ""}</td>
        <td class="number">${task.exit_code ?? ""}</td><td class="number nowrap">${task.duration_ms == null ? "" : duration(task.duration_ms)}</td></tr>`)}</tbody></table></div>
      ${total > tasks.length && html`<p class="more"><button type="button" class="button" onClick=${() => setLimit(Math.min(1000, limit * 4))}
        disabled=${limit >= 1000}>Show more of ${plural(total, "member")}</button></p>`}`}
  </section>`;
}
