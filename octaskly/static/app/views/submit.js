import { get, post } from "../api.js";
import { html, useEffect, useId, useLayoutEffect, useRef, useState } from "../lib.js";
import { href } from "../router.js";
import { nodes, tell } from "../store.js";
import { Button, Copy } from "../ui.js";
import { ARRAY_FIELDS, COMMAND, SECTIONS, bodyOf, fieldOf, typedOf } from "./asking.js";
import { asCurl, asked } from "./copies.js";
import { Unsendable, noTree, sendTree } from "../trees.js";
import { Progress, Sending } from "./sending.js";

const ARRAYS = [["", "Once"], ["range", "For each number"], ["items", "For each item"]];

/** A form with everything that a task may ask for; few need more than a command. */
export function Submit({ query }) {
  const [typed, setTyped] = useState({ command: query.get("command") ?? "" });
  const [arrayOf, setArray] = useState(query.get("array") ?? "");
  const [wrong, setWrong] = useState(null);
  const [made, setMade] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const [tree, setTree] = useState(noTree);
  const [sent, setSent] = useState(null); //: what a task calls its files, once a node has them
  const [progress, setProgress] = useState(null);
  const over = useRef(null); //: ends the sending
  const once = useRef(null); //: key and id of one submission, however often it is sent
  const form = useRef(null);
  const hasFiles = tree.files.size + tree.folders.size > 0;
  const body = withTree(bodyOf(typed, arrayOf), sent);
  const from = query.get("from");
  useEffect(() => {
    if (from === null) return;
    get(`/api/v1/tasks/${encodeURIComponent(from)}`).then((task) => {
      const filled = typedOf(asked(task));
      setTyped(filled.typed);
      setArray(filled.arrayOf);
      setSent(asked(task).tree ?? null);
    }, passes);
  }, [from]);
  useEffect(() => () => over.current?.abort(), []);
  const changeTree = (changed) => {
    once.current = null;
    setSent(null);
    setTree(changed);
  };
  const sendFiles = async () => {
    if (!hasFiles) return body; // What a node has already is not sent again.
    over.current = new AbortController();
    try {
      const answer = await sendTree(tree, { signal: over.current.signal, tell: setProgress });
      setSent(answer);
      return withTree(body, answer);
    } finally {
      setProgress(null);
    }
  };
  const change = (name, value) => {
    once.current = null;
    setTyped((before) => ({ ...before, [name]: value }));
    if (wrong?.name === name) setWrong(null);
  };
  const submit = async (event) => {
    event?.preventDefault();
    if (isBusy) return;
    setBusy(true);
    setWrong(null);
    setMade(null);
    try {
      const whole = await sendFiles();
      once.current ??= { key: crypto.randomUUID(), id: await newId() };
      const { key, id } = once.current;
      const options = { quiet: true, headers: { "Idempotency-Key": key } };
      const task = await post("/api/v1/tasks", { id, ...whole }, options);
      once.current = null;
      setMade(task);
      tell(`Submitted as ${task.id}`, { kind: "good" });
    } catch (problem) {
      if (problem.name === "AbortError") return;
      if (problem instanceof Unsendable) setWrong({ name: "", text: problem.message, hint: problem.hint });
      else if (problem.status === undefined) throw problem;
      else setWrong({ name: fieldOf(problem.field), text: problem.error, hint: problem.hint });
    } finally {
      setBusy(false);
    }
  };
  useLayoutEffect(() => {
    const field = wrong?.name && form.current.querySelector(`[data-field="${wrong.name}"]`);
    if (!field) return;
    const section = field.closest("details");
    if (section) section.open = true;
    field.focus();
  }, [wrong]);
  const hear = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
  };
  const show = (field) => html`<${Field} key=${field.name} field=${field} value=${typed[field.name]} change=${change}
    wrong=${wrong?.name === field.name ? wrong : null} />`;
  return html`<div class="head"><h1>Submit a task</h1></div>
    <form class="submit" ref=${form} onSubmit=${submit} onKeyDown=${hear} novalidate aria-label="Submit a task">
      ${wrong && wrong.name === "" && html`<p class="problem" role="alert"><strong>${wrong.text}</strong>${wrong.hint && html` – ${wrong.hint}`}</p>`}
      <section class="card">
        ${show(COMMAND)}
        <fieldset class="many"><legend>How often</legend>
          ${ARRAYS.map(([value, label]) => html`<label key=${value}><input type="radio" name="array" value=${value} checked=${arrayOf === value}
            onChange=${() => setArray(value)} /> ${label}</label>`)}</fieldset>
        ${arrayOf !== "" && html`<div class="fields">${show(ARRAY_FIELDS[arrayOf])}${show(ARRAY_FIELDS.max_fails)}</div>`}
      </section>
      <${Sending} tree=${tree} kept=${hasFiles ? null : sent} change=${changeTree} drop=${() => setSent(null)} isBusy=${isBusy} />
      ${SECTIONS.map(({ title, fields, isOpen }) => html`<details class="card section" key=${title} open=${isOpen || (from !== null && fields.some(({ name }) => typed[name]))}>
        <summary>${title}<${Given} fields=${fields} typed=${typed} /></summary><div class="fields">${fields.map(show)}</div></details>`)}
      ${progress && html`<section class="card"><${Progress} progress=${progress} cancel=${() => over.current.abort()} /></section>`}
      ${made && html`<${Made} task=${made} isArray=${arrayOf !== ""} />`}
      <div class="submit-end"><button class="button primary" disabled=${isBusy || !typed.command.trim()} aria-busy=${isBusy}>Submit</button>
        <${Button} kind="quiet" onPress=${() => { setTyped({ command: "" }); setArray(""); changeTree(noTree()); setWrong(null); setMade(null); }}>Clear<//>
        ${(!hasFiles || sent !== null) && html`<${Copy} text=${asCurl(body, location.origin)} label="Copy as curl" />`}
        <span class="hint"><kbd>Ctrl</kbd> <kbd>Enter</kbd> submits from any field</span></div>
    </form>`;
}

/** Returns a body with the files that were sent along, which need a fresh folder. */
const withTree = (body, sent) => (sent === null ? body : { ...body, workdir: "scratch", tree: sent });

/** Asks for an id of the usual length: one that follows from a key is a long number. */
async function newId() {
  try {
    return (await get("/api/v1/ids", { count: 1 }, { quiet: true })).ids[0];
  } catch (problem) {
    if (problem.status === 404) return undefined; // The dispatcher is too old to give any.
    throw problem;
  }
}

/** A toast has said what was refused. */
function passes(problem) {
  if (problem.status === undefined) throw problem;
}

/** How many fields of a section say something, so that a closed one hides nothing. */
function Given({ fields, typed }) {
  const many = fields.filter(({ name }) => typed[name]).length;
  return many > 0 ? html` <span class="tag dispatcher">${many} set</span>` : null;
}

function Made({ task, isArray }) {
  return html`<p class="made" role="status">${isArray ? "The array" : "The task"} is submitted as
    <a href=${href(["tasks", task.id])}>${task.id}</a>${task.replicas > 1 ? `, on ${task.replicas} disks` : ", on one disk"}.
    <a class="button" href=${href(["tasks", task.id])}>Open it</a></p>`;
}

function Field({ field, value, change, wrong }) {
  const id = useId();
  const { name, label, hint, kind = "line", choices = [], placeholder } = field;
  const told = [hint && `${id}-hint`, wrong && `${id}-wrong`].filter(Boolean).join(" ") || undefined;
  const shared = { id, "data-field": name, "aria-describedby": told, "aria-invalid": wrong ? "true" : undefined };
  const onInput = (event) => change(name, event.currentTarget.value);
  // What types are called in the API tells nothing to who fills in a form.
  const why = wrong && (wrong.hint || wrong.text).replace(/^Expected [^;]*; /, "");
  const error = wrong && html`<p class="field-wrong" id=${`${id}-wrong`} role="alert">${why}</p>`;
  if (kind === "check") {
    return html`<div class="field check"><label for=${id}><input type="checkbox" ...${shared} checked=${value === true}
      onChange=${(event) => change(name, event.currentTarget.checked)} /> ${label}</label>${error}</div>`;
  }
  return html`<div class=${`field ${name === "command" ? "wide" : ""}`}><label for=${id}>${label}</label>
    ${kind === "area" && html`<textarea ...${shared} rows=${name === "command" ? 4 : 3} placeholder=${placeholder} spellcheck=${false}
      value=${value ?? ""} onInput=${onInput} required=${name === "command"}></textarea>`}
    ${kind === "line" && html`<input ...${shared} type="text" autocomplete="off" spellcheck=${false} placeholder=${placeholder} value=${value ?? ""} onInput=${onInput} />`}
    ${kind === "choice" && html`<select ...${shared} value=${value ?? ""} onChange=${onInput}>${choices.map(([one, text]) => html`<option key=${one} value=${one}>${text}</option>`)}</select>`}
    ${kind === "node" && html`<select ...${shared} value=${value ?? ""} onChange=${onInput}><option value="">any</option>
      ${nodes.value.map((node) => html`<option key=${node.id} value=${node.name}>${node.name}</option>`)}</select>`}
    ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}${error}</div>`;
}
