/** The files of a task: those that were sent along with it, and what it left. */

import { download, get } from "../api.js";
import { ago, plural, size, visible } from "../format.js";
import { html, useEffect, useState } from "../lib.js";
import { session } from "../session.js";
import { now } from "../store.js";
import { Button } from "../ui.js";

const PAGE = 100;
const GONE = {
  sent: "No node has them any more. Those that octaskly run or map lends are kept while it runs, others for about an hour.",
  left: "Its node does not have them any more: its --retention is over, or its disk was full.",
};

/** Both lists, where there is something to list. */
export function Files({ task }) {
  const left = task.outputs?.some((output) => output.bytes !== null);
  const missing = task.outputs_missing ?? [];
  if (!task.tree && !left && missing.length === 0) return null;
  const path = `/api/v1/tasks/${encodeURIComponent(task.id)}`;
  // Names are for all; what is in a file, for those who could have a task read it.
  const isViewer = session.value?.role === "viewer";
  return html`<div class="task-parts">
    ${task.tree && html`<${List} key="in" title="Files sent along" path=${`${path}/tree`} tar=${`${task.id}-files.tar`} gone=${GONE.sent} isLocked=${isViewer} />`}
    ${(left || missing.length > 0) && html`<${List} key=${`out ${left}`} title="Output files" path=${left ? `${path}/outputs` : null} tar=${`${task.id}-outputs.tar`} gone=${GONE.left} missing=${missing} />`}
  </div>`;
}

/** One list, a page at a time; `path` is null where there is nothing to ask for. */
function List({ title, path, tar, gone, missing = [], isLocked = false }) {
  const { entries, total, bytes, problem, more } = usePages(path);
  const isKnown = total !== null;
  return html`<section class="card files" aria-label=${title}>
    <div class="log-head"><h2>${title}</h2>
      ${isKnown && html`<span class="muted" role="status">${plural(total, "file")}, ${size(bytes)}</span>`}
      ${isKnown && !isLocked && html`<div class="end"><${Button} onPress=${() => download(`${path}.tar`, tar)}>Download all as tar<//></div>`}</div>
    ${missing.length > 0 && html`<p class="problem">Not there at the end: ${missing.map(visible).join(", ")}</p>`}
    ${problem?.status === 404 && html`<p class="muted" role="status">${gone}</p>`}
    ${problem && problem.status !== 404 && html`<p class="problem" role="alert">${problem.hint || problem.error}</p>`}
    ${path && !isKnown && !problem && html`<p class="muted" role="status">Loading …</p>`}
    ${entries.length > 0 && html`<div class="scroll files-scroll" tabindex="0" role="region" aria-label=${`${title}: list`}><table>
      <thead><tr><th scope="col">Path</th><th scope="col" class="number">Size</th><th scope="col" class="wide-only">Changed</th>
        ${!isLocked && html`<th scope="col"><span class="visually-hidden">Download</span></th>`}</tr></thead>
      <tbody>${entries.map((entry) => html`<${Row} key=${entry.path} entry=${entry} path=${path} isLocked=${isLocked} />`)}</tbody></table></div>`}
    ${isKnown && entries.length < total && html`<p class="more"><${Button} onPress=${more}>Show more of ${plural(total, "file")}<//></p>`}
  </section>`;
}

function Row({ entry, path, isLocked }) {
  const { kind, bytes, executable, target, modified_at: at } = entry;
  const shown = visible(entry.path);
  const name = visible(entry.path.split("/").at(-1));
  const address = `${path}/${entry.path.split("/").map(encodeURIComponent).join("/")}`;
  return html`<tr><td class="files-path"><bdi>${shown}${kind === "folder" ? "/" : ""}</bdi>
      ${kind === "link" && html`<span class="muted"> → <bdi>${visible(target)}</bdi></span>`}
      ${executable && html` <span class="tag">program</span>`}</td>
    <td class="number nowrap">${kind === "file" ? size(bytes) : html`<span class="muted">${kind === "link" ? "link" : "empty"}</span>`}</td>
    <td class="wide-only nowrap muted">${at && html`<time datetime=${at} title=${at}>${ago(at, now.value)}</time>`}</td>
    ${!isLocked && html`<td class="number">${kind === "file" && html`<${Button} kind="small" aria-label=${`Download ${shown}`}
      onPress=${() => download(address, name)}>Download<//>`}</td>`}</tr>`;
}

const NONE = { entries: [], total: null, bytes: 0, problem: null };

/** The entries that were read so far, and what reads the next page of them. */
function usePages(path) {
  const [found, setFound] = useState(NONE);
  const read = async (offset, signal) => {
    try {
      const page = await get(path, { limit: PAGE, offset }, { quiet: true, signal });
      setFound(({ entries }) => ({ ...page, entries: [...entries.slice(0, offset), ...page.entries], problem: null }));
    } catch (problem) {
      if (signal?.aborted) return;
      if (problem.status === undefined) throw problem;
      setFound((before) => ({ ...before, problem }));
    }
  };
  useEffect(() => {
    const over = new AbortController();
    setFound(NONE);
    if (path !== null) read(0, over.signal);
    return () => over.abort();
  }, [path]);
  return { ...found, more: () => read(found.entries.length) };
}
