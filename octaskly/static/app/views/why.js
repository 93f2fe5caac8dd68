/** The explanation of a task's state. */

import { get } from "../api.js";
import { byName, titleOf } from "../format.js";
import { html, useEffect } from "../lib.js";
import { useReader } from "../reading.js";
import { href } from "../router.js";
import { Dialog, State } from "../ui.js";
import { Output } from "./ansi.js";
import { FirstFailure } from "./members.js";
import { cameFrom } from "./transfers.js";

const AGAIN_MS = 3000;
const LAST_LINES = 5;
const LAST_CHARS = 2000;

const FINAL = ["completed", "failed", "cancelled"];

/** The dispatcher's explanation of a task, read again until the task has ended. */
export function useExplained(id, status = "") {
  const { found, problem, reader } = useReader(
    (signal) => get(`/api/v1/tasks/${encodeURIComponent(id)}/explain`, {}, { quiet: true, signal }), [id]);
  useEffect(() => {
    reader.current.read();
  }, [id, status]);
  useEffect(() => {
    if (found !== null && !FINAL.includes(status)) reader.current.soon(AGAIN_MS);
  }, [found, status]);
  return problem?.status === 404 ? { summary: problem.error, nodes: [] } : found;
}

/** Reasons that waiting does not change. */
const LACKS = ["node", "os", "arch", "label", "cpus", "memory", "gpus"];

/** Returns true if no present node could ever run it. */
export const isHopeless = (told) => told?.status === "queued" && told.nodes.length > 0
  && told.nodes.every(({ reasons }) => reasons.some(({ code }) => LACKS.includes(code)));

/** A sentence, and the reasons of each node. */
export function Why({ told }) {
  if (told === null) return html`<p class="muted" role="status">Loading …</p>`;
  return html`<p class="why-summary">${sentence(told.summary)}</p>
    ${told.inputs && html`<p class="muted">Files: ${cameFrom(told.inputs)}.</p>`}
    ${told.placement && html`<p class="muted">${sentence(told.placement)}</p>`}
    ${told.nodes.length > 0 && html`<div class="scroll"><table class="why">
      <thead><tr><th scope="col">Node</th><th scope="col">State</th><th scope="col">Why not there</th></tr></thead>
      <tbody>${[...told.nodes].sort(byName).map((node) => html`<tr key=${node.id}><th scope="row"><a href=${href(["nodes", node.name])}><bdi>${node.name}</bdi></a></th>
        <td><${State} of=${node.state} /></td>
        <td>${node.reasons.map((why) => why.message).join("; ") || "–"}</td></tr>`)}</tbody>
    </table></div>`}`;
}

const TITLES = { queued: "Why is it queued?", failed: "Why did it fail?" };

/** Explains why a task of the list waits or failed, with the end of its output. */
export function WhyDialog({ task, onClose }) {
  const told = useExplained(task.id);
  const failed = useFailed(task);
  const last = lastLines(failed?.stderr);
  return html`<${Dialog} title=${TITLES[told?.status ?? task.status] ?? "Where it runs"} onClose=${onClose}>
    <div class="why-body"><${Why} told=${told && failed ? { ...told, placement: null, nodes: [] } : told} />
      <${FirstFailure} failure=${told?.first_failure} array=${task.id} />
      ${last && html`<p class="muted">The end of stderr:</p><pre class="why-end" tabindex="0">${last}</pre>`}
      <p><a href=${href(["tasks", task.id])}>Open ${titleOf(task)}</a></p></div>
  <//>`;
}

/** All of a task that failed, null before. */
function useFailed({ id, status }) {
  const { found, reader } = useReader((signal) => get(`/api/v1/tasks/${encodeURIComponent(id)}`, {}, { quiet: true, signal }), [id]);
  useEffect(() => {
    if (status === "failed") reader.current.read();
  }, [id, status]);
  return found;
}

/** The last lines of an output, without control characters, as in the log. */
function lastLines(text) {
  const output = new Output(LAST_LINES);
  output.pen("stderr").write(`${(text ?? "").slice(-LAST_CHARS).trimEnd()}\n`);
  return output.lines.map(({ spans }) => spans.map((span) => span.text).join("")).join("\n").trim();
}

/** Returns a text as a sentence; names of nodes stay as they are. */
const sentence = (text) => `${text.replace(/^(it|no|none|of|at least)\b/, (word) => word.charAt(0).toUpperCase() + word.slice(1))}.`;
