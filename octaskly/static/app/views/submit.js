import { get, post } from "../api.js";
import { plural } from "../format.js";
import { html, useEffect, useId, useLayoutEffect, useRef, useState } from "../lib.js";
import { go } from "../router.js";
import { may, session } from "../session.js";
import { nodes, tell } from "../store.js";
import { Button, Command, Copy, Empty } from "../ui.js";
import { ARRAY_FIELDS, COMMAND, COMMON, MORE, bodyOf, fieldOf, typedOf } from "./asking.js";
import { asCurl, asked } from "./copies.js";
import { Unsendable, noTree, sendTree } from "../trees.js";
import { Progress, Sending, Stdin } from "./sending.js";

const ARRAYS = [["", "Once"], ["range", "For each number"], ["items", "For each item"]];

/** The form, for those who may submit tasks. */
export function Submit({ query }) {
  if (!may.submit.value) {
    return html`<${Empty} title="You are signed in as a viewer"><p>Viewers can look at everything, but not submit tasks. To submit tasks, type this in a terminal on this machine:</p>
      <${Command} text="octaskly open" /><//>`;
  }
  return html`<${Form} query=${query} />`;
}

/** All fields of a task; most tasks need only a command, files and a name. */
function Form({ query }) {
  const [typed, setTyped] = useState({ command: query.get("command") ?? "" });
  const [arrayOf, setArray] = useState(query.get("array") ?? "");
  const [wrong, setWrong] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const [tree, setTree] = useState(noTree);
  const [readings, setReadings] = useState(0); //: dropped folders that are being read
  const [sent, setSent] = useState(null); //: reference to the files, once a node has them
  const [progress, setProgress] = useState(null);
  const over = useRef(null); //: ends the sending; null while nothing is submitted
  const once = useRef(null); //: key and id of one submission, however often it is sent
  const form = useRef(null); //: null after another view was opened
  const isReading = readings > 0;
  const hasFiles = tree.files.size + tree.folders.size > 0;
  const body = withTree(bodyOf(typed, arrayOf), sent);
  const from = query.get("from");
  const [filledFrom, setFilledFrom] = useState(null);
  const [isOpen, setOpen] = useState(false); //: the section with more options
  const isFilling = from !== null && filledFrom !== from; //: the form is locked until then
  const fill = async (id, signal) => {
    try {
      const task = await get(`/api/v1/tasks/${encodeURIComponent(id)}`, {}, { signal });
      if (signal.aborted) return;
      // The API's default limit is not that of this form.
      const filled = typedOf({ timeout: task.timeout, ...asked(task) });
      setTyped(filled.typed);
      setArray(filled.arrayOf);
      setOpen(countMore(filled.typed) > 0);
      setSent(asked(task).tree ?? null);
    } catch (problem) {
      if (signal.aborted) return;
      if (problem.status === undefined) throw problem; // A toast has shown others.
    }
    setFilledFrom(id);
  };
  useEffect(() => {
    setFilledFrom(null);
    if (from === null) return undefined;
    const over = new AbortController();
    fill(from, over.signal);
    return () => over.abort();
  }, [from]);
  useEffect(() => () => {
    if (over.current === null) return;
    if (session.value === null) over.current.abort(); // The next one to sign in may be somebody else.
    else tell("The task is still being submitted", { hint: "Leave this page open until then." });
  }, []);
  const changeTree = (changed) => {
    once.current = null;
    setSent(null);
    setTree(changed);
  };
  const sendFiles = async () => {
    if (!hasFiles) return body; // A node may have the files already.
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
  const choose = (value) => {
    once.current = null;
    setArray(value);
  };
  const submit = async (event) => {
    event?.preventDefault();
    if (isBusy || isReading) return; // It would lack files.
    setBusy(true);
    setWrong(null);
    over.current = new AbortController();
    addEventListener("beforeunload", ask);
    try {
      const whole = await sendFiles();
      once.current ??= { key: crypto.randomUUID(), id: await newId() };
      const { key, id } = once.current;
      const options = { quiet: true, headers: { "Idempotency-Key": key } };
      const task = await post("/api/v1/tasks", { id, ...whole }, options);
      once.current = null;
      tell(`${arrayOf ? "Array" : "Task"} submitted${task.replicas > 1 ? `, and stored on ${task.replicas} nodes` : ""}`, { kind: "good" });
      if (form.current !== null) go(["tasks", task.id]);
    } catch (problem) {
      if (form.current === null) tell("The task was not submitted", { kind: "bad", hint: problem.hint || problem.message });
      if (problem.name === "AbortError") return;
      if (problem instanceof Unsendable) setWrong({ name: "", text: problem.message, hint: problem.hint });
      else if (problem.status === undefined) throw problem;
      else setWrong({ name: fieldOf(problem.field, arrayOf), text: problem.error, hint: problem.hint });
    } finally {
      removeEventListener("beforeunload", ask);
      over.current = null;
      setBusy(false);
    }
  };
  useLayoutEffect(() => {
    const field = wrong && form.current.querySelector(`[data-field="${wrong.name}"]`);
    if (!field) return;
    const section = field.closest("details");
    if (section) section.open = true;
    field.focus();
  }, [wrong]);
  const clear = () => {
    setTyped({ command: "" });
    setArray("");
    changeTree(noTree());
    setWrong(null);
  };
  const eachFile = () => change("array.items", [...tree.files.keys()].join("\n"));
  const more = countMore(typed);
  const hear = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
  };
  const show = (field) => html`<${Field} key=${field.name} field=${field} value=${typed[field.name]} change=${change} bytes=${typed.stdin_base64}
    wrong=${wrong?.name === field.name ? wrong : null} />`;
  return html`<div class="head"><h1>Submit a task</h1></div>
    <form class="submit" ref=${form} onSubmit=${submit} onKeyDown=${hear} novalidate
      aria-label="Submit a task" aria-busy=${isFilling} inert=${isFilling}>
      <section class="card">
        ${show(COMMAND)}
        <fieldset class="many"><legend>How often</legend>
          ${ARRAYS.map(([value, label]) => html`<label key=${value}><input type="radio" name="array" value=${value} checked=${arrayOf === value}
            onChange=${() => choose(value)} /> ${label}</label>`)}</fieldset>
        ${arrayOf !== "" && html`<div class="fields">${show(ARRAY_FIELDS[arrayOf])}${show(ARRAY_FIELDS.max_fails)}</div>
          ${arrayOf === "items" && tree.files.size > 0 && html`<p class="each-file"><${Button} kind="small" onPress=${eachFile}>Use the ${plural(tree.files.size, "file")} below as items<//></p>`}`}
      </section>
      <${Sending} tree=${tree} kept=${hasFiles ? null : sent} change=${changeTree} drop=${() => changeTree(tree)} isBusy=${isBusy}
        isReading=${isReading} reading=${(more) => setReadings((many) => many + more)} />
      <section class="card" aria-label="Common options"><div class="fields">${COMMON.map(show)}</div></section>
      <details class="card section" open=${isOpen} onToggle=${(event) => setOpen(event.currentTarget.open)}>
        <summary>More options${more > 0 && html` <span class="tag dispatcher">${more} set</span>`}</summary>
        ${MORE.map(({ title, fields }) => html`<fieldset class="more-options" key=${title}><legend>${title}</legend><div class="fields">${fields.map(show)}</div></fieldset>`)}</details>
      ${progress && html`<section class="card"><${Progress} progress=${progress} cancel=${() => over.current.abort()} /></section>`}
      ${wrong && wrong.name === "" && html`<p class="problem" role="alert" tabindex="-1" data-field=""><strong>${wrong.text}</strong>${wrong.hint && html` – ${wrong.hint}`}</p>`}
      <div class="submit-end"><button class="button primary" disabled=${isBusy || isReading || !typed.command.trim()} aria-busy=${isBusy}>Submit</button>
        <${Button} kind="quiet" onPress=${clear}>Clear<//>
        ${(!hasFiles || sent !== null) && html`<${Copy} text=${asCurl(body, location.origin)} label="Copy as curl" />`}
        <span class="hint wide-only"><kbd>Ctrl</kbd> <kbd>Enter</kbd> submits from any field</span></div>
    </form>`;
}

/** The number of options that are set in the section that is closed at first. */
const countMore = (typed) => MORE.flatMap(({ fields }) => fields).filter(({ name }) => typed[name]).length + (typed.stdin_base64 ? 1 : 0);

/** Returns a body with the files that are sent along into a folder of its own. */
const withTree = (body, sent) => (sent === null ? body : { ...body, workdir: "scratch", tree: sent });

/** Makes a browser ask before it closes the page. */
const ask = (event) => event.preventDefault();

/** Requests an id of the usual length; ids derived from a key are long. */
async function newId() {
  try {
    return (await get("/api/v1/ids", { count: 1 }, { quiet: true })).ids[0];
  } catch (problem) {
    if (problem.status === 404) return undefined; // The dispatcher is too old.
    throw problem;
  }
}

function Field({ field, value, change, wrong, bytes }) {
  const id = useId();
  const { name, label, hint, kind = "line", choices = [], placeholder, isWide = false } = field;
  const described = [hint && `${id}-hint`, wrong && `${id}-wrong`].filter(Boolean).join(" ") || undefined;
  const shared = { id, "data-field": name, "aria-describedby": described, "aria-invalid": wrong ? "true" : undefined };
  const onInput = (event) => change(name, event.currentTarget.value);
  // The types of the API mean nothing to the user of a form: "got `str`; expected an integer".
  const why = wrong && (wrong.hint || wrong.text).replace(/^got `[^;]*; /, "");
  const error = wrong && html`<p class="field-wrong" id=${`${id}-wrong`} role="alert">${why}</p>`;
  if (kind === "check") {
    return html`<div class="field check"><label for=${id}><input type="checkbox" ...${shared} checked=${value === true}
      onChange=${(event) => change(name, event.currentTarget.checked)} /> ${label}</label>${error}</div>`;
  }
  return html`<div class=${`field ${isWide ? "wide" : ""}`}><label for=${id}>${label}</label>
    ${kind === "area" && html`<textarea ...${shared} rows=${name === "command" ? 4 : isWide ? 2 : 3} placeholder=${placeholder} spellcheck=${false}
      value=${value ?? ""} onInput=${onInput} required=${name === "command"}></textarea>`}
    ${kind === "line" && html`<input ...${shared} type="text" autocomplete="off" spellcheck=${false} placeholder=${placeholder} value=${value ?? ""} onInput=${onInput} />`}
    ${kind === "stdin" && html`<${Stdin} shared=${shared} text=${value ?? ""} bytes=${bytes} change=${change} />`}
    ${kind === "choice" && html`<select ...${shared} value=${value ?? ""} onChange=${onInput}>${choices.map(([one, text]) => html`<option key=${one} value=${one}>${text}</option>`)}</select>`}
    ${kind === "node" && html`<select ...${shared} value=${value ?? ""} onChange=${onInput}><option value="">any suitable node</option>
      ${nodes.value.map((node) => html`<option key=${node.id} value=${node.name}>${node.name}</option>`)}</select>`}
    ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}${error}</div>`;
}
