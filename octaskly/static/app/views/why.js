/** Why a task waits, or why it is where it is. */

import { get } from "../api.js";
import { html, useEffect, useState } from "../lib.js";
import { href } from "../router.js";
import { Dialog, State } from "../ui.js";

const AGAIN_MS = 3000;

const FINAL = ["completed", "failed", "cancelled"];

/** What the dispatcher says of a task, asked for again until that is its last word. */
export function useExplained(id, status = "") {
  const [told, setTold] = useState(null);
  useEffect(() => {
    const over = new AbortController();
    let timer = 0;
    const ask = async () => {
      try {
        setTold(await get(`/api/v1/tasks/${encodeURIComponent(id)}/explain`, {}, { quiet: true, signal: over.signal }));
      } catch (problem) {
        if (over.signal.aborted) return;
        if (problem.status === undefined) throw problem;
        if (problem.status === 404) return setTold({ summary: problem.error, nodes: [] });
      }
      if (!FINAL.includes(status)) timer = setTimeout(ask, AGAIN_MS);
    };
    ask();
    return () => {
      over.abort();
      clearTimeout(timer);
    };
  }, [id, status]);
  return told;
}

/** The one sentence, and what keeps each node from it. */
export function Why({ told }) {
  if (told === null) return html`<p class="muted" role="status">Asking the dispatcher …</p>`;
  return html`<p class="why-summary">${sentence(told.summary)}</p>
    ${told.placement && html`<p class="muted">${sentence(told.placement)}</p>`}
    ${told.nodes.length > 0 && html`<div class="scroll"><table class="why">
      <thead><tr><th scope="col">Node</th><th scope="col">State</th><th scope="col">Why not there</th></tr></thead>
      <tbody>${told.nodes.map((node) => html`<tr key=${node.id}><th scope="row"><a href=${href(["nodes", node.name])}>${node.name}</a></th>
        <td><${State} of=${node.state} /></td>
        <td>${node.reasons.map((why) => why.message).join("; ") || "–"}</td></tr>`)}</tbody>
    </table></div>`}`;
}

export function WhyDialog({ id, onClose }) {
  const told = useExplained(id);
  const title = told && told.status !== "queued" ? "Where this task is" : "Why is this waiting?";
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <div class="why-body"><${Why} told=${told} />
      <p><a href=${href(["tasks", id])}>Open ${id}</a></p></div>
  <//>`;
}

/** As a sentence; names of nodes stay as they are. */
const sentence = (text) => `${text.replace(/^(it|no|none|of|at least)\b/, (word) => word.charAt(0).toUpperCase() + word.slice(1))}.`;
