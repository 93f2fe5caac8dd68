/**
 * The fields of the form, the body that follows from the typed texts, and the field that
 * an error of the API is about. It does not touch the page, so it can be tested.
 *
 * The form does not validate: the API says what is wrong, and where.
 */

const SECONDS = { "": 1, s: 1, sec: 1, m: 60, min: 60, h: 3600, d: 86_400 };

const number = (text) => (/^-?\d+$/.test(text.trim()) ? Number(text) : text.trim());
const word = (text) => text.trim();
const whole = (text) => text;
const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
const pairs = (text) => Object.fromEntries(text.split("\n").filter((line) => line.trim()).map((line) => {
  const at = line.indexOf("=");
  return at < 0 ? [line.trim(), ""] : [line.slice(0, at).trim(), line.slice(at + 1)];
}));
/** `90`, `90 s`, `30 min`, `2 h`. */
function seconds(text) {
  const [, many, unit] = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/.exec(text.trim()) ?? [];
  return unit in SECONDS ? Math.round(Number(many) * SECONDS[unit]) : text.trim();
}
const causes = (text) => text.split(/[\s,]+/).filter(Boolean).map(number);
const typedLines = (given) => given.join("\n");
const typedPairs = (given) => typedLines(Object.entries(given).map(([name, value]) => `${name}=${value}`));

/**
 * @typedef {object} Field
 * @property {string} name In the API; a dot separates a field of an object.
 * @property {string} label
 * @property {string} [hint]
 * @property {"line"|"area"|"check"|"choice"|"node"|"stdin"} [kind] Default `line`.
 * @property {[string, string][]} [choices] Value and label.
 * @property {(text: string) => unknown} [read] Parses the typed text; default: one word.
 * @property {string} [placeholder]
 * @property {boolean} [isWide] It fills the row.
 */

/** @type {Field[]} What many tasks need; the rest is behind "More options". */
export const COMMON = [
  { name: "name", label: "Name", hint: "Shown in lists; need not be unique.", placeholder: "nightly build" },
  { name: "requires.node", label: "Run on", kind: "node" },
  { name: "timeout", label: "Timeout", read: seconds, hint: "Such as 90 s, 30 min or 2 h; none if empty.", placeholder: "none" },
  { name: "outputs", label: "Outputs", kind: "area", isWide: true, read: lines, hint: "Files, folders or globs to keep after the task, one per line. Download them when it has ended.", placeholder: "out/*.png" },
];

/** @type {{title: string, fields: Field[]}[]} */
export const MORE = [
  { title: "Requirements for the node", fields: [
    { name: "requires.cpus", label: "CPUs", read: number, hint: "Default 1.", placeholder: "1" },
    { name: "requires.memory_mb", label: "Memory, MiB", read: number, hint: "Reserved on its node.", placeholder: "2048" },
    { name: "requires.gpus", label: "GPUs", read: number, placeholder: "0" },
    { name: "requires.os", label: "Operating system", placeholder: "linux" },
    { name: "requires.arch", label: "Processor", placeholder: "x86_64" },
    { name: "requires.labels", label: "Node labels", kind: "area", read: pairs, hint: "One name=value per line.", placeholder: "room=attic" },
    { name: "fail_fast", label: "Refuse the task if no node can ever run it", kind: "check" },
  ] },
  { title: "Environment and input", fields: [
    { name: "env", label: "Environment variables", kind: "area", read: pairs, hint: "One NAME=value per line. Everyone who can read the task sees them.", placeholder: "MODE=fast" },
    { name: "stdin", label: "Stdin", kind: "stdin", read: whole },
    { name: "inputs", label: "Inputs", kind: "area", read: lines, hint: "Files that the worker directory of its node must already have, one per line.", placeholder: "data/in.csv" },
    { name: "outputs_of", label: "Outputs of other tasks", kind: "area", read: lines, hint: "Task ids, one per line. It runs after them, with their outputs in its folder.", placeholder: "task-012-0a1b2c3d" },
    { name: "cwd", label: "Folder", hint: "An absolute path, or one below the worker directory.", placeholder: "/srv/data" },
    { name: "workdir", label: "Run in a scratch folder (new and empty)", kind: "check", read: () => "scratch" },
  ] },
  { title: "Limits and retries", fields: [
    { name: "retries", label: "Retries", read: number, hint: "More attempts after a failure, 0 to 100.", placeholder: "0" },
    { name: "retry_on", label: "Retry after", read: causes, hint: "failure, lost, or exit codes. Default: failure and lost.", placeholder: "lost, 75" },
    { name: "grace", label: "Grace period", read: seconds, hint: "Between SIGTERM and SIGKILL when it is stopped.", placeholder: "5 s" },
    { name: "limits.memory_mb", label: "Memory limit, MiB", read: number },
    { name: "limits.cpu_seconds", label: "CPU time limit", read: seconds, placeholder: "30 min" },
    { name: "limits.file_mb", label: "File size limit, MiB", read: number },
    { name: "limits.processes", label: "Process limit", read: number },
  ] },
  { title: "Scheduling and notification", fields: [
    { name: "priority", label: "Priority", read: number, hint: "-50 to 50; higher runs first.", placeholder: "0" },
    { name: "after", label: "Run after these tasks", kind: "area", read: lines, hint: "Task ids, one per line.", placeholder: "task-012-0a1b2c3d" },
    { name: "on", label: "Required outcome of those tasks", kind: "choice", choices: [["", "succeeded"], ["failure", "failed"], ["any", "either"]] },
    { name: "notify_url", label: "Notify this URL when done", placeholder: "https://example.org/hook" },
    { name: "labels", label: "Labels", kind: "area", read: pairs, hint: "To search by; one name=value per line.", placeholder: "team=red" },
    { name: "durability", label: "Copies", kind: "choice", choices: [["", "as many as possible"], ["strict", "refuse the task unless two nodes store it"]] },
    { name: "visitors", label: "Visitors", kind: "choice", read: (text) => text === "true" || text, choices: [["", "may run it if the mesh allows that"], ["true", "may run it"], ["with-env", "may run it, and see its environment variables"]] },
    { name: "visitors_min", label: "Visitors that stay at least", read: seconds, hint: "Such as 30 min; as long as the timeout if empty.", placeholder: "30 min" },
    { name: "id", label: "Task id", hint: "Chosen by the dispatcher if empty." },
  ] },
];

/** @type {Field[]} What makes it an array. */
export const ARRAY_FIELDS = {
  range: { name: "array.range", label: "Numbers", hint: "FIRST-LAST or FIRST-LAST:STEP. {} in the command stands for the number.", placeholder: "1-100" },
  items: { name: "array.items", label: "Items", kind: "area", read: (text) => text.replace(/\n$/, "").split("\n"), hint: "One per line. {} in the command stands for the item, {.} for the item without its extension.", placeholder: "a.png\nb.png" },
  max_fails: { name: "array.max_fails", label: "Stop after failures", read: number, hint: "Stop starting items after more than this many failures." },
};

export const COMMAND = { name: "command", label: "Command", kind: "area", isWide: true, read: whole, placeholder: "python3 train.py --seed 7" };

/** Bytes of a file that is chosen as stdin. */
const STDIN_BYTES = { name: "stdin_base64", read: whole };

const ALL = [COMMAND, ...Object.values(ARRAY_FIELDS), ...COMMON, ...MORE.flatMap(({ fields }) => fields), STDIN_BYTES];

/** The body to post. @param {Record<string, string|boolean>} typed by name of the field */
export function bodyOf(typed, arrayOf = "") {
  const body = { command: typed.command ?? "" };
  for (const { name, kind, read = kind === "check" ? () => true : word } of ALL) {
    const given = typed[name];
    if (name === "command" || given === undefined || given === false) continue;
    if (typeof given === "string" && given.trim() === "") continue;
    if (name.startsWith("array.") && (arrayOf === "" || !["array.max_fails", `array.${arrayOf}`].includes(name))) continue;
    const [outer, inner] = name.split(".");
    if (inner === undefined) body[outer] = read(given);
    else body[outer] = { ...body[outer], [inner]: read(given) };
  }
  if (arrayOf !== "") body.array = { [arrayOf]: arrayOf === "items" ? [] : "", ...body.array }; // The API refuses an empty one.
  if (body.outputs_of) body.workdir = "scratch";
  body.timeout ??= "none"; // As the command line: the default of the API is an hour.
  return body;
}

/** The value of a field in a body. */
const partOf = (body, name) => name.split(".").reduce((part, key) => part?.[key], body);

/** The typed texts for a body: the opposite of `bodyOf`. */
export function typedOf(body) {
  const typed = {};
  for (const { name, kind, read } of ALL) {
    const given = partOf(body, name);
    if (given === undefined || given === null) continue;
    if (kind === "check") typed[name] = true;
    else if (read === pairs) typed[name] = typedPairs(given);
    else typed[name] = Array.isArray(given) ? typedLines(given) : String(given);
  }
  return { typed, arrayOf: body.array ? "range" : "" };
}

/** Returns true if the form submits a body as it is: a field has one pair or path for each line. */
export function canHold(body) {
  const { typed, arrayOf } = typedOf(body);
  const again = bodyOf(typed, arrayOf);
  return ALL.every(({ name }) => JSON.stringify(partOf(again, name)) === JSON.stringify(partOf(body, name)));
}

/** Name of the field that an error is about, "" for none: `$.requires.cpus`, `$.env.A`. */
export function fieldOf(path, arrayOf) {
  const parts = String(path ?? "").replace(/^\$(\[\d+\])?\.?/, "").replace(/\[[^\]]*\]/g, "").split(".");
  if (parts[0] === "stdin_base64") return "stdin";
  for (let many = parts.length; many > 0; many -= 1) {
    const name = parts.slice(0, many).join(".");
    if (ALL.some((field) => field.name === name)) return name;
  }
  return parts[0] === "array" && arrayOf !== "" ? `array.${arrayOf}` : "";
}
