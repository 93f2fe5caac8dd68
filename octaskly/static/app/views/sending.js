/** The parts of the form that take files, and the progress of sending them. */

import { plural, size, visible } from "../format.js";
import { html, useEffect, useRef, useState } from "../lib.js";
import { Button } from "../ui.js";
import { Unsendable, joined, names, secretsIn, treeOfEntries, treeOfInput, without } from "../trees.js";

const SECRETS_SHOWN = 3;
const NAMES_SHOWN = 200;

/**
 * Files and folders to send along; dropped anywhere on the page, or chosen.
 * @param {{tree: object, kept: object|null, change: (tree: object) => void, drop: () => void, isBusy: boolean, isReading: boolean, reading: (more: number) => void}} props
 *   `kept` is the tree of the task that is edited, and `drop` lets go of it; `reading`
 *   counts what is being read.
 */
export function Sending({ tree, kept, change, drop, isBusy, isReading, reading }) {
  const [problem, setProblem] = useState(null);
  const [isOver, setOver] = useState(false);
  const files = useRef(null);
  const folder = useRef(null);
  const latest = useRef(null);
  const add = async (made) => {
    setProblem(null);
    reading(1);
    try {
      const more = await made;
      // Others may have been added meanwhile, and not been drawn yet.
      latest.current.tree = joined(latest.current.tree, more);
      change(latest.current.tree);
    } catch (wrong) {
      if (!(wrong instanceof Unsendable)) throw wrong;
      setProblem(wrong);
    } finally {
      reading(-1);
    }
  };
  latest.current = { tree, add, isBusy };
  useDrops(latest, setOver);
  const choose = ({ currentTarget }) => {
    const list = [...currentTarget.files];
    currentTarget.value = ""; // So that the same files can be chosen again.
    if (list.length > 0) add(new Promise((done) => done(treeOfInput(list))));
  };
  return html`<section class=${`card sending ${isOver ? "over" : ""}`} aria-label="Files to send along" aria-busy=${isReading}>
    <div class="sending-ask"><div><h2>Files</h2><p class="muted">Drop files or folders anywhere on this page. They are sent along, and the command runs in the folder with them.</p></div>
      <div class="row"><${Button} disabled=${isBusy} onPress=${() => files.current.click()}>Add files …<//>
        <${Button} disabled=${isBusy} onPress=${() => folder.current.click()}>Add a folder …<//></div></div>
    <input ref=${files} hidden type="file" multiple onChange=${choose} />
    <input ref=${folder} hidden type="file" webkitdirectory onChange=${choose} />
    ${problem && html`<p class="problem" role="alert"><strong>${problem.message}</strong> ${problem.hint} Nothing was added.</p>`}
    ${isReading && html`<p class="muted" role="status">Reading folders …</p>`}
    ${kept && html`<p class="row">The files of the original task are sent along again. <${Button} kind="small" onPress=${drop}>Remove them<//></p>`}
    <${Chosen} tree=${tree} change=${change} isBusy=${isBusy} /></section>`;
}

/** Takes drops anywhere, because a browser leaves the page for a file dropped beside the form. */
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
    <p role="status"><strong>${plural(tree.files.size, "file")}, ${size(whole)}</strong>${tree.hasSkipped ? html`<span class="muted">; .git was skipped</span>` : ""}</p>
    ${secrets.length > 0 && html`<p class="warning">These files look like secrets, and will be sent: ${secrets.slice(0, SECRETS_SHOWN).map(visible).join(", ")}${secrets.length > SECRETS_SHOWN ? ` and ${secrets.length - SECRETS_SHOWN} more` : ""}</p>`}
    <p class="hint">Files listed in .gitignore are sent too, and no file is executable: start a script with <code>sh</code> or <code>python3</code>. <code>octaskly submit --in</code> handles both.</p>`;
}

/** The top level of a tree; folders with the number and size of their files. */
function topsOf(tree) {
  const tops = new Map([...names(tree)].map((name) => [name, { name, many: 0, bytes: 0, isFolder: !tree.files.has(name) }]));
  for (const [path, file] of tree.files) {
    const top = tops.get(path.split("/", 1)[0]);
    top.many += 1;
    top.bytes += file.size;
  }
  return [...tops.values()];
}

const STDIN_BYTES_MAX = 1 << 20;

/** Standard input: text, or a file. */
export function Stdin({ shared, text, bytes, change }) {
  const file = useRef(null);
  const [chosen, setChosen] = useState(null); //: name and size of the file
  const [problem, setProblem] = useState(null);
  const take = (name, encoded) => {
    change("stdin", "");
    change("stdin_base64", encoded);
    setChosen(name);
  };
  const choose = async ({ currentTarget }) => {
    const [one] = currentTarget.files;
    currentTarget.value = "";
    if (one === undefined) return;
    setProblem(one.size > STDIN_BYTES_MAX ? `${visible(one.name)} is larger than 1 MiB: add it under Files instead, and write < ${visible(one.name)} after the command.` : null);
    if (one.size <= STDIN_BYTES_MAX) take(`${visible(one.name)}, ${size(one.size)}`, await base64Of(one));
  };
  return html`${bytes
      ? html`<p class="row"><bdi>${chosen ?? "A file"}</bdi> <${Button} kind="small" onPress=${() => take(null, "")}>Remove<//></p>`
      : html`<textarea ...${shared} rows="3" spellcheck=${false} value=${text} onInput=${(event) => change("stdin", event.currentTarget.value)}></textarea>
        <p><${Button} kind="small" onPress=${() => file.current.click()}>Use a file …<//></p>`}
    ${problem && html`<p class="field-wrong" role="alert">${problem}</p>`}
    <input ref=${file} hidden type="file" onChange=${choose} />`;
}

async function base64Of(file) {
  const reader = new FileReader();
  await new Promise((done, failed) => {
    reader.onload = done;
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });
  return reader.result.slice(reader.result.indexOf(",") + 1);
}

/** The progress of sending; null while nothing is sent. */
export function Progress({ progress, cancel }) {
  const { text, sent, of } = progress;
  return html`<div class="sending-progress"><p role="status"><bdi>${text}</bdi></p>
    <div class="row"><progress aria-label="Bytes sent" max=${of || 1} value=${of ? sent : undefined}></progress>
      <span class="muted nowrap">${of ? `${size(sent)} of ${size(of)}` : ""}</span><${Button} onPress=${cancel}>Cancel<//></div></div>`;
}
