/**
 * What the form of a submission asks for: its fields, the body that follows from what
 * was typed, and which field an error of the API is about. No page, so it can be tested.
 *
 * What is typed is sent as it is: the API says what is wrong with it, and where.
 */

const number = (text) => (/^-?\d+$/.test(text.trim()) ? Number(text) : text.trim());
const word = (text) => text.trim();
const whole = (text) => text;
const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
const pairs = (text) => Object.fromEntries(text.split("\n").filter((line) => line.trim()).map((line) => {
  const at = line.indexOf("=");
  return at < 0 ? [line.trim(), ""] : [line.slice(0, at).trim(), line.slice(at + 1)];
}));
const causes = (text) => text.split(/[\s,]+/).filter(Boolean).map(number);
/** As they are typed; what is written so is read the same. */
const typedLines = (given) => given.join("\n");
const typedPairs = (given) => typedLines(Object.entries(given).map(([name, value]) => `${name}=${value}`));

/**
 * @typedef {object} Field
 * @property {string} name As the API calls it; with a dot, a part of an object.
 * @property {string} label
 * @property {string} [hint]
 * @property {"line"|"area"|"check"|"choice"|"node"} [kind] `line` unless told
 * @property {[string, string][]} [choices] Value and what it means.
 * @property {(text: string) => unknown} [read] From what was typed; one word unless told.
 * @property {string} [placeholder]
 */

/** @type {{title: string, fields: Field[], isOpen?: boolean}[]} */
export const SECTIONS = [
  { title: "Name and labels", isOpen: true, fields: [
    { name: "name", label: "Name", hint: "For people; need not be unique.", placeholder: "nightly build" },
    { name: "labels", label: "Labels", kind: "area", read: pairs, hint: "One name=value on each line; to find it again.", placeholder: "team=red" },
  ] },
  { title: "What it needs", fields: [
    { name: "requires.cpus", label: "CPUs", read: number, hint: "Slots that it holds; 1 unless told.", placeholder: "1" },
    { name: "requires.memory_mb", label: "Memory, MiB", read: number, hint: "Set aside for it on its node." },
    { name: "requires.gpus", label: "GPUs", read: number },
    { name: "requires.node", label: "Node", kind: "node", hint: "The only node that will do." },
    { name: "requires.os", label: "System", placeholder: "linux" },
    { name: "requires.arch", label: "Processor", placeholder: "x86_64" },
    { name: "requires.labels", label: "Labels of the node", kind: "area", read: pairs, hint: "One name=value on each line.", placeholder: "room=attic" },
    { name: "fail_fast", label: "Refuse it if no node could ever run it", kind: "check" },
  ] },
  { title: "Surroundings and files", fields: [
    { name: "env", label: "Variables", kind: "area", read: pairs, hint: "One NAME=value on each line. Whoever may read the task sees them.", placeholder: "MODE=fast" },
    { name: "cwd", label: "Folder", hint: "Absolute, or below the worker directory." },
    { name: "workdir", label: "In a fresh folder of its own", kind: "check", read: () => "scratch" },
    { name: "stdin", label: "Standard input", kind: "area", read: whole },
    { name: "stdin_base64", label: "Standard input, in base64", kind: "area", hint: "Instead, for bytes that are no text." },
    { name: "inputs", label: "Inputs", kind: "area", read: lines, hint: "Paths, one on each line, that its node must have.", placeholder: "data/in.csv" },
    { name: "outputs_of", label: "With the outputs of these tasks", kind: "area", read: lines, hint: "Ids, one on each line; it runs after them, in a fresh folder.", placeholder: "task-012-0a1b2c3d" },
    { name: "outputs", label: "Outputs", kind: "area", read: lines, hint: "Paths, one on each line, that are kept after the end.", placeholder: "out/result.json" },
  ] },
  { title: "Time, limits and retries", fields: [
    { name: "timeout", label: "Time limit, seconds", read: number, hint: "1 to 86400; 3600 unless told.", placeholder: "3600" },
    { name: "grace", label: "Grace, seconds", read: number, hint: "From being told to end to being killed." },
    { name: "limits.memory_mb", label: "Memory at most, MiB", read: number },
    { name: "limits.cpu_seconds", label: "CPU time at most, seconds", read: number },
    { name: "limits.file_mb", label: "Size of a file at most, MiB", read: number },
    { name: "limits.processes", label: "Processes at most", read: number },
    { name: "retries", label: "Retries", read: number, hint: "Attempts that may follow one that failed, 0 to 100.", placeholder: "0" },
    { name: "retry_on", label: "Tried again after", read: causes, hint: "failure, lost, or exit codes; failure and lost unless told.", placeholder: "lost, 75" },
  ] },
  { title: "Order and telling", fields: [
    { name: "priority", label: "Priority", read: number, hint: "-50 to 50; a higher one runs first.", placeholder: "0" },
    { name: "after", label: "After these tasks", kind: "area", read: lines, hint: "Ids, one on each line.", placeholder: "task-012-0a1b2c3d" },
    { name: "on", label: "When they ended", kind: "choice", choices: [["", "well"], ["failure", "badly"], ["any", "in any way"]] },
    { name: "notify_url", label: "Tell this URL at its end", placeholder: "https://example.org/hook" },
    { name: "durability", label: "Copies", kind: "choice", choices: [["", "as the dispatcher is set"], ["strict", "refuse it if only one disk can hold it"]] },
    { name: "id", label: "Id", hint: "Made by the dispatcher unless told." },
  ] },
];

/** @type {Field[]} What makes it an array. */
export const ARRAY_FIELDS = {
  range: { name: "array.range", label: "Numbers", hint: "FIRST-LAST or FIRST-LAST:STEP; {} in the command stands for the number.", placeholder: "1-100" },
  items: { name: "array.items", label: "Items", kind: "area", read: (text) => text.replace(/\n$/, "").split("\n"), hint: "One on each line; {} in the command stands for it.", placeholder: "a.png\nb.png" },
  max_fails: { name: "array.max_fails", label: "Failures at most", read: number, hint: "After more than that no other member begins." },
};

export const COMMAND = { name: "command", label: "Command", kind: "area", read: whole, placeholder: "python3 train.py --seed 7" };

const ALL = [COMMAND, ...Object.values(ARRAY_FIELDS), ...SECTIONS.flatMap(({ fields }) => fields)];

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
  if (arrayOf !== "" && body.array === undefined) body.array = {};
  if (body.outputs_of) body.workdir = "scratch";
  return body;
}

/** What is typed where a body is to be edited: the opposite of `bodyOf`. */
export function typedOf(body) {
  const typed = {};
  for (const { name, kind, read } of ALL) {
    const [outer, inner] = name.split(".");
    const given = inner === undefined ? body[outer] : body[outer]?.[inner];
    if (given === undefined || given === null) continue;
    if (kind === "check") typed[name] = true;
    else if (read === pairs) typed[name] = typedPairs(given);
    else typed[name] = Array.isArray(given) ? typedLines(given) : String(given);
  }
  return { typed, arrayOf: body.array ? "range" : "" };
}

/** Name of the field that an error is about, "" for none: `$.requires.cpus`, `$.env.A`. */
export function fieldOf(path) {
  const parts = String(path ?? "").replace(/^\$(\[\d+\])?\.?/, "").replace(/\[[^\]]*\]/g, "").split(".");
  for (let many = parts.length; many > 0; many -= 1) {
    const name = parts.slice(0, many).join(".");
    if (ALL.some((field) => field.name === name)) return name;
  }
  return parts[0] === "array" ? "array.range" : "";
}
