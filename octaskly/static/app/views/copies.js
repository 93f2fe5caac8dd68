/** A task as a command that submits the same again: for the terminal, and for curl. */

import { bytes, duration, mebibytes, plural } from "../format.js";

/** As a shell takes one word. */
export function quoted(text) {
  if (/^[A-Za-z0-9_@%+=:,./-]+$/.test(text)) return text;
  return `'${text.replaceAll("'", `'"'"'`)}'`;
}

/** What to post so that the same is asked for; without what holds anyway. */
export function asked(task) {
  const body = { command: task.command };
  if (task.timeout !== null && task.timeout !== 3600) body.timeout = task.timeout;
  const plain = ["name", "cwd", "workdir", "grace", "notify_url", "priority", "retries"];
  for (const name of plain) if (task[name]) body[name] = task[name];
  for (const name of ["labels", "env"]) if (Object.keys(task[name] ?? {}).length) body[name] = task[name];
  if (task.inputs?.length) body.inputs = task.inputs;
  if (task.outputs?.length) body.outputs = task.outputs.map(({ path }) => path);
  if (task.tree && !task.tree.lent) body.tree = task.tree;
  if (task.outputs_of?.length) body.outputs_of = task.outputs_of;
  if (task.stdin_file) body.stdin_file = task.stdin_file;
  if (task.after?.length) Object.assign(body, { after: task.after, on: task.on });
  const isUsual = task.retry_on?.join() === "failure,lost";
  if (!isUsual && task.retry_on) body.retry_on = task.retry_on;
  for (const name of ["requires", "limits"]) {
    const given = Object.entries(task[name] ?? {}).filter(([, value]) => value !== null && !isEmpty(value));
    if (given.length) body[name] = Object.fromEntries(given);
  }
  // Of items the API shows no list, so an array can be repeated by its numbers alone.
  if (task.array?.range) body.array = { range: task.array.range };
  if (body.array && task.array.max_fails !== null) body.array.max_fails = task.array.max_fails;
  return body;
}

/** What a node must have, in words: `1 GPU`, `8 GiB of memory`. */
export function needsOf(requires) {
  const { labels, node, os, arch, cpus, memory_mb: memory, gpus } = requires ?? {};
  return [
    ...Object.entries(labels ?? {}).map(([name, value]) => `label ${name}=${value}`),
    node && `the name ${node}`, os, arch,
    cpus && plural(cpus, "CPU"),
    memory && `${mebibytes(memory)} of memory`,
    gpus && plural(gpus, "GPU"),
  ].filter(Boolean);
}

/** What a task may take at most, in words. */
export function limitsOf(limits) {
  const { memory_mb: memory, cpu_seconds: cpu, file_mb: file, processes } = limits ?? {};
  return [
    memory && `${mebibytes(memory)} of memory`,
    cpu && `${duration(cpu * 1000)} of CPU time`,
    file && `files of ${mebibytes(file)}`,
    processes && plural(processes, "process", "processes"),
  ].filter(Boolean);
}

const isEmpty = (value) => typeof value === "object" && Object.keys(value).length === 0;

/** Whether it is an array of items, of which the API shows no list. */
export const isOfItems = ({ array }) => Boolean(array) && !array.range;

/** What it reads, in a comment to stand before what cannot say it; "" for nothing. */
export const unread = ({ stdin_bytes: size, tree }) =>
  (size ? `# left out: the ${bytes(size)} that it reads, as nodes show them to nobody\n` : "")
  + (tree?.lent ? "# left out: the files that were sent along, as no node keeps them\n" : "");

/** What no command can say, and what is to be where, as comments of a shell. */
function comments(task, { requires = {} }) {
  const left = ["os", "arch"].filter((name) => requires[name]).map((name) => `${name} ${requires[name]}`);
  if (task.tree) left.push("the files that were sent along; --in sends them again");
  return [
    task.stdin_bytes && `# stdin.txt is to hold the ${bytes(task.stdin_bytes)} that it reads: nodes show them to nobody\n`,
    left.length > 0 && `# left out, as only a request can say it: ${left.join(", ")}\n`,
  ].filter(Boolean).join("");
}

/** `octaskly run ... -- COMMAND`; items are to be in a file, one a line. */
export function asCli(task) {
  const body = asked(task);
  const words = ["octaskly", isOfItems(task) ? "map" : body.array ? "array" : "run"];
  const add = (flag, value) => value !== undefined && words.push(flag, quoted(String(value)));
  const pairs = (flag, given) => Object.entries(given ?? {}).forEach(([name, value]) => add(flag, value === "" ? name : `${name}=${value}`));
  const each = (flag, values) => (values ?? []).forEach((value) => add(flag, value));
  const { requires = {}, limits = {} } = body;
  add("--name", body.name);
  pairs("--label", body.labels);
  add("--timeout", body.timeout);
  add("--cpus", requires.cpus);
  add("--memory", requires.memory_mb);
  add("--gpus", requires.gpus);
  add("--on", requires.node);
  Object.entries(requires.labels ?? {}).forEach(([name, value]) => add("--require", `${name}=${value}`));
  // A name alone would mean the variable of whoever pastes it.
  each("--env", Object.entries(body.env ?? {}).map(([name, value]) => `${name}=${value}`));
  add("--cwd", body.cwd);
  if (body.workdir) words.push("--scratch");
  if (task.stdin_bytes) add("--stdin", "stdin.txt");
  each("--needs", body.inputs);
  each("--from", body.outputs_of);
  each("--out", body.outputs);
  add("--priority", body.priority);
  add("--retries", body.retries);
  each("--retry-on", body.retry_on);
  add("--grace", body.grace);
  pairs("--limit", limits);
  add("--notify-url", body.notify_url);
  each("--after", body.after);
  if (body.on && body.on !== "success") add("--after-on", body.on);
  add("--max-fails", task.array?.max_fails ?? undefined);
  if (body.array) words.push(body.array.range);
  return `${comments(task, body)}${words.join(" ")} -- ${quoted(task.command)}${isOfItems(task) ? " < items.txt" : ""}`;
}

/** A body to post, for curl, which asks for a token of its own. */
export function asCurl(body, origin) {
  const isLocal = /^http:\/\/(localhost|127\.0\.0\.1|\[::1\])/.test(origin);
  return [
    `curl ${quoted(`${origin}/api/v1/tasks`)}`,
    ...(isLocal ? [] : ["--cacert ca.pem"]),
    `-H "Authorization: Bearer $(octaskly token create --role client)"`,
    "-H 'Content-Type: application/json'",
    `-d ${quoted(JSON.stringify(body))}`,
  ].join(" \\\n  ");
}
