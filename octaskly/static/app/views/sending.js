/** The part of the form of a submission that takes files, and how far they are sent. */

import { plural, size, visible } from "../format.js";
import { html, useEffect, useRef, useState } from "../lib.js";
import { Button } from "../ui.js";
import { Unsendable, joined, names, secretsIn, treeOfEntries, treeOfInput, without } from "../trees.js";

const SECRETS_SHOWN = 3;
const NAMES_SHOWN = 200;

/**
 * Files and folders to send along; dropped anywhere on the page, or chosen.
 * @param {{tree: object, kept: object|null, change: (tree: object) => void, drop: () => void, isBusy: boolean}} props
 *   `kept` is the tree of the task that is edited, and `drop` lets go of it.
 */
export function Sending({ tree, kept, change, drop, isBusy }) {
  const [problem, setProblem] = useState(null);
  const [isReading, setReading] = useState(false);
  const [isOver, setOver] = useState(false);
  const files = useRef(null);
  const folder = useRef(null);
  const latest = useRef(null);
  const add = async (made) => {
    setProblem(null);
    setReading(true);
    try {
      change(joined(latest.current.tree, await made));
    } catch (wrong) {
      if (!(wrong instanceof Unsendable)) throw wrong;
      setProblem(wrong);
    } finally {
      setReading(false);
    }
  };
  latest.current = { tree, add, isBusy };
  useDrops(latest, setOver);
  const choose = ({ currentTarget }) => {
    const list = [...currentTarget.files];
    currentTarget.value = ""; // So that the same can be chosen again.
    if (list.length > 0) add(new Promise((done) => done(treeOfInput(list))));
  };
  return html`<section class=${`card sending ${isOver ? "over" : ""}`} aria-label="Files to send along" aria-busy=${isReading}>
    <div class="sending-ask"><p><strong>Files</strong> <span class="muted">Drop files or folders here: they go along, into a fresh folder in which the command runs.</span></p>
      <div class="row"><${Button} disabled=${isBusy} onPress=${() => files.current.click()}>Add files<//>
        <${Button} disabled=${isBusy} onPress=${() => folder.current.click()}>Add a folder<//></div></div>
    <input ref=${files} hidden type="file" multiple onChange=${choose} />
    <input ref=${folder} hidden type="file" webkitdirectory onChange=${choose} />
    ${problem && html`<p class="problem" role="alert"><strong>${problem.message}</strong> ${problem.hint} Nothing was added.</p>`}
    ${isReading && html`<p class="muted" role="status">Reading folders …</p>`}
    ${kept && html`<p class="row">The files of the task that you edit go along again. <${Button} kind="small" onPress=${drop}>Leave them out<//></p>`}
    <${Chosen} tree=${tree} change=${change} isBusy=${isBusy} /></section>`;
}

/** Takes what is dropped anywhere: beside the form a browser would leave the page for it. */
function useDrops(latest, setOver) {
  useEffect(() => {
    const over = new AbortController();
    const on = (type, hear) => addEventListener(type, hear, { signal: over.signal });
    const hasFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
    on("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      setOver(true);
    });
    on("dragleave", ({ relatedTarget }) => relatedTarget === null && setOver(false));
    on("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      setOver(false);
      const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
      if (!latest.current.isBusy) latest.current.add(treeOfEntries(entries));
    });
    return () => over.abort();
  }, []);
}

function Chosen({ tree, change, isBusy }) {
  const tops = topsOf(tree);
  if (tops.length === 0) return null;
  const whole = tops.reduce((sum, { bytes }) => sum + bytes, 0);
  const secrets = secretsIn(tree);
  return html`<ul class="sending-list">${tops.slice(0, NAMES_SHOWN).map(({ name, many, bytes, isFolder }) => html`<li key=${name}>
      <span class="files-path"><bdi>${visible(name)}</bdi>${isFolder ? "/" : ""}</span>
      <span class="muted nowrap">${isFolder ? `${plural(many, "file")}, ` : ""}${size(bytes)}</span>
      <${Button} kind="small" disabled=${isBusy} aria-label=${`Remove ${visible(name)}`} onPress=${() => change(without(tree, name))}>Remove<//></li>`)}</ul>
    ${tops.length > NAMES_SHOWN && html`<p class="muted">and ${plural(tops.length - NAMES_SHOWN, "other")}</p>`}
    <p role="status"><strong>${plural(tree.files.size, "file")}, ${size(whole)}</strong>${tree.hasSkipped ? html`<span class="muted">; skipped .git</span>` : ""}</p>
    ${secrets.length > 0 && html`<p class="warning">Files that look secret are sent: ${secrets.slice(0, SECRETS_SHOWN).map(visible).join(", ")}${secrets.length > SECRETS_SHOWN ? ` and ${secrets.length - SECRETS_SHOWN} more` : ""}</p>`}
    <p class="hint">What .gitignore names is sent, too; <code>octaskly submit --in</code> would skip it. A browser does not tell which files are programs: start a script with <code>sh</code> or <code>python3</code>.</p>`;
}

/** What stands at the top of a tree, folders with what they hold. */
function topsOf(tree) {
  const tops = new Map([...names(tree)].map((name) => [name, { name, many: 0, bytes: 0, isFolder: !tree.files.has(name) }]));
  for (const [path, file] of tree.files) {
    const top = tops.get(path.split("/", 1)[0]);
    top.many += 1;
    top.bytes += file.size;
  }
  return [...tops.values()];
}

/** How far the files are sent; null while none are. */
export function Progress({ progress, cancel }) {
  const { text, sent, of } = progress;
  return html`<div class="sending-progress"><p role="status"><bdi>${text}</bdi></p>
    <div class="row"><progress aria-label="Bytes sent" max=${of || 1} value=${of ? sent : undefined}></progress>
      <span class="muted nowrap">${of ? `${size(sent)} of ${size(of)}` : ""}</span><${Button} onPress=${cancel}>Cancel<//></div></div>`;
}
