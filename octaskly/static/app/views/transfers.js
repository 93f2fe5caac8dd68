/** Where the files of the latest visible tasks came from. */

import { get } from "../api.js";
import { plural, size, titleOf } from "../format.js";
import { html, useEffect, useRef, useState } from "../lib.js";
import { href } from "../router.js";
import { State } from "../ui.js";

const SHOWN_MAX = 12; //: each costs the dispatcher a request to a node
const KNOWN_MAX = 200;
const AGAIN_MS = 3000;

/** `3.1 GB of 3.2 GB was already there; 0.1 GB came from desk`, as in `octaskly explain`. */
export const cameFrom = ({ bytes, present_bytes: present, sent }) =>
  [`${size(present)} of ${size(bytes)} was already there`, ...sent.map(({ node, bytes: many }) => `${size(many)} came from ${node}`)].join("; ");

/** @param {{seen: {bar: object, node: string}[]}} props Visible attempts, latest first. */
export function Transfers({ seen }) {
  const shown = seen.filter(({ bar }) => bar.attempt.has_files).slice(0, SHOWN_MAX);
  const known = useInputs(shown.map(({ bar }) => bar));
  const rows = shown.map(({ bar, node }) => ({ bar, node, inputs: known.get(bar.key) })).filter(({ node, inputs }) => inputs?.node === node);
  if (rows.length === 0) return null;
  const moved = rows.reduce((sum, { inputs }) => sum + inputs.sent.reduce((all, { bytes }) => all + bytes, 0), 0);
  return html`<section class="card files transfers" aria-label="Transfers"><div class="log-head"><h2>File transfers</h2>
      <span class="muted" role="status">${size(moved)} for ${plural(rows.length, "attempt")}</span></div>
    <div class="scroll" tabindex="0" role="region" aria-label="Transfers of the visible attempts"><table>
      <thead><tr><th scope="col">Task</th><th scope="col" class="wide-only">State</th><th scope="col">To</th><th scope="col">From</th>
        <th scope="col" class="number">Already there</th><th scope="col" class="number wide-only">Total</th></tr></thead>
      <tbody>${rows.map(({ bar, node, inputs }) => html`<tr key=${bar.key}><td><a href=${href(["tasks", bar.attempt.id])}>${titleOf(bar.attempt)}</a></td>
        <td class="wide-only"><${State} of=${bar.status} /></td><td><a href=${href(["nodes", node])}>${node}</a></td>
        <td>${inputs.sent.length ? inputs.sent.map(({ node: from, bytes }) => `${from} (${size(bytes).replace(" ", "\u00a0")})`).join(", ") : html`<span class="muted">–</span>`}</td>
        <td class="number nowrap">${size(inputs.present_bytes)}</td><td class="number nowrap wide-only">${size(inputs.bytes)}</td></tr>`)}</tbody></table></div>
  </section>`;
}

/**
 * What is known of where the files of attempts came from, by key: asked for one after
 * another, of those that have ended once.
 */
function useInputs(bars) {
  const known = useRef(new Map());
  const wanted = useRef(bars);
  const [, redraw] = useState(0);
  wanted.current = bars;
  const keys = bars.map(({ key, status }) => `${key} ${status}`).join();
  useEffect(() => {
    if (keys === "") return undefined;
    const over = new AbortController();
    let timer = 0;
    const ask = async () => {
      for (const bar of wanted.current) {
        const at = `${bar.key} ${bar.status}`;
        if (over.signal.aborted || document.hidden) break;
        if (bar.status !== "running" && known.current.get(bar.key)?.at === at) continue;
        const path = `/api/v1/tasks/${encodeURIComponent(bar.attempt.id)}/explain`;
        const answer = await get(path, {}, { quiet: true, signal: over.signal }).catch(passes);
        if (answer === undefined) continue; // It is asked again, or was forgotten.
        known.current.delete(bar.key);
        known.current.set(bar.key, { at, inputs: answer.inputs });
        if (known.current.size > KNOWN_MAX) known.current.delete(known.current.keys().next().value);
        redraw((n) => n + 1);
      }
      const isMore = wanted.current.some(({ status }) => status === "running");
      if (isMore && !over.signal.aborted) timer = setTimeout(ask, AGAIN_MS);
    };
    ask();
    return () => {
      over.abort();
      clearTimeout(timer);
    };
  }, [keys]);
  return new Map([...known.current].map(([key, { inputs }]) => [key, inputs]));
}

function passes(problem) {
  if (problem.status === undefined && problem.name !== "AbortError") throw problem;
}
