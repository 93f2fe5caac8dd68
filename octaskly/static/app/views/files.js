/** The files of a task: those that were sent along, and its outputs. */

import { download, get, mayPass } from "../api.js";
import { ago, plural, size, visible } from "../format.js";
import { html, useEffect, useState } from "../lib.js";
import { RETRY_MS, Reader } from "../reading.js";
import { may } from "../session.js";
import { now } from "../store.js";
import { Button } from "../ui.js";

const PAGE = 100;
const GONE = {
  sent: "They are no longer on any node. Files of octaskly run and map are kept while these commands run, others for about an hour after the task.",
  left: "They are no longer on any node: they were deleted after --retention, or because the disk was full.",
};

/** Both lists; an empty one is left out. */
export function Files({ task }) {
  const left = task.outputs?.some((output) => output.bytes !== null);
  const missing = task.outputs_missing ?? [];
  if (!task.tree && !left && missing.length === 0) return null;
  const path = `/api/v1/tasks/${encodeURIComponent(task.id)}`;
  // Viewers see names; only those who may submit tasks see contents.
  const isLocked = !may.submit.value;
  return html`<div class="task-parts">
    ${task.tree && html`<${List} key="in" title="Files sent along" path=${`${path}/tree`} tar=${`${task.id}-files.tar`} gone=${GONE.sent} isLocked=${isLocked} />`}
    ${(left || missing.length > 0) && html`<${List} key=${`out ${left}`} title="Output files" path=${left ? `${path}/outputs` : null} tar=${`${task.id}-outputs.tar`} gone=${GONE.left} missing=${missing} />`}
  </div>`;
}

/** One list, a page at a time; `path` is null if there is nothing to read. */
function List({ title, path, tar, gone, missing = [], isLocked = false }) {
  const { entries, total, bytes, problem, more } = usePages(path);
  const isKnown = total !== null;
  return html`<section class="card files" aria-label=${title}>
    <div class="log-head"><h2>${title}</h2>
      ${isKnown && html`<span class="muted" role="status">${plural(total, "file")}, ${size(bytes)}</span>`}
      ${isKnown && !isLocked && html`<div class="end"><${Button} onPress=${() => download(`${path}.tar`, tar)}>Download all (.tar)<//></div>`}</div>
    ${missing.length > 0 && html`<p class="problem">Missing when the task ended: ${missing.map(visible).join(", ")}</p>`}
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
      ${executable && html` <span class="tag">executable</span>`}</td>
    <td class="number nowrap">${kind === "file" ? size(bytes) : html`<span class="muted">${kind === "link" ? "link" : "empty"}</span>`}</td>
    <td class="wide-only nowrap muted">${at && html`<time datetime=${at} title=${at}>${ago(at, now.value)}</time>`}</td>
    ${!isLocked && html`<td class="number">${kind === "file" && html`<${Button} kind="small" aria-label=${`Download ${shown}`}
      onPress=${() => download(address, name)}>Download<//>`}</td>`}</tr>`;
}

const NONE = { entries: [], total: null, bytes: 0, problem: null };

/** The entries that were read so far, and a function that reads the next page. */
function usePages(path) {
  const [found, setFound] = useState(NONE);
  const read = async (offset, signal, reader) => {
    try {
      const page = await get(path, { limit: PAGE, offset }, { quiet: true, signal });
      setFound(({ entries }) => ({ ...page, entries: [...entries.slice(0, offset), ...page.entries], problem: null }));
    } catch (problem) {
      if (signal?.aborted) return;
      if (problem.status === undefined) throw problem;
      setFound((before) => ({ ...before, problem }));
      if (mayPass(problem)) reader?.soon(RETRY_MS);
    }
  };
  useEffect(() => {
    const reader = new Reader((signal) => read(0, signal, reader));
    setFound(NONE);
    if (path !== null) reader.read();
    return () => reader.close();
  }, [path]);
  return { ...found, more: () => read(found.entries.length) };
}
