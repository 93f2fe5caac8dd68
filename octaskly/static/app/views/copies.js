/** Commands that submit a task again: for the terminal, and for curl. */

import { duration, mebibytes, plural, size } from "../format.js";

/** Quotes one word for a shell. */
export function quoted(text) {
  if (/^[A-Za-z0-9_@%+=:,./-]+$/.test(text)) return text;
  return `'${text.replaceAll("'", `'"'"'`)}'`;
}

/** The body that submits a task again, without defaults. */
export function asked(task) {
  const body = { command: task.command };
  if (task.timeout !== 3600) body.timeout = task.timeout ?? "none";
  const plain = ["name", "call", "cwd", "workdir", "notify_url", "priority", "retries", "visitors_min"];
  for (const name of plain) if (task[name]) body[name] = task[name];
  if (typeof task.grace === "number") body.grace = task.grace; // 0 counts.
  // With variables, the API shows that visitors may run it only if they may see them.
  if (task.visitors) body.visitors = Object.keys(task.env ?? {}).length ? "with-env" : true;
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
  // The API does not return items, so only an array of numbers can be repeated.
  if (task.array?.range) body.array = { range: task.array.range };
  if (body.array && task.array.max_fails !== null) body.array.max_fails = task.array.max_fails;
  return body;
}

/** The requirements for a node, in words: `1 GPU`, `8 GiB of memory`. */
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

/** The limits of a task, in words. */
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

/** Returns true for an array of items, which the API does not return. */
export const isOfItems = ({ array }) => Boolean(array) && !array.range;

/** A shell comment on what the command leaves out; "" for nothing. */
export const unread = ({ stdin_bytes: many, tree }) =>
  (many ? `# omitted: stdin (${size(many)}), which the API does not return\n` : "")
  + (tree?.lent ? "# omitted: the files that were sent along, which no node keeps\n" : "");

/** Shell comments on what the command leaves out or needs. */
function comments(task, { requires = {} }) {
  const left = ["os", "arch"].filter((name) => requires[name]).map((name) => `${name} ${requires[name]} (only in the API)`);
  if (task.tree) left.push("the files that were sent along (--in sends them again)");
  return [
    task.stdin_bytes && `# save stdin (${size(task.stdin_bytes)}) as stdin.txt first: the API does not return it\n`,
    left.length > 0 && `# omitted: ${left.join(", ")}\n`,
  ].filter(Boolean).join("");
}

/** `octaskly run ... -- COMMAND`; items come from a file, one per line. */
export function asCli(task) {
  const body = asked(task);
  const words = ["octaskly", isOfItems(task) ? "map" : body.array ? "array" : "run"];
  const add = (flag, value) => value !== undefined && words.push(flag, quoted(String(value)));
  const pairs = (flag, given) => Object.entries(given ?? {}).forEach(([name, value]) => add(flag, value === "" ? name : `${name}=${value}`));
  const each = (flag, values) => (values ?? []).forEach((value) => add(flag, value));
  const { requires = {}, limits = {} } = body;
  add("--name", body.name);
  pairs("--label", body.labels);
  add("--timeout", task.timeout ?? undefined);
  add("--cpus", requires.cpus);
  add("--memory", requires.memory_mb);
  add("--gpus", requires.gpus);
  add("--on", requires.node);
  Object.entries(requires.labels ?? {}).forEach(([name, value]) => add("--require", `${name}=${value}`));
  // A name alone would take the value from the shell of the user.
  each("--env", Object.entries(body.env ?? {}).map(([name, value]) => `${name}=${value}`));
  add("--cwd", body.cwd);
  if (body.workdir) words.push("--scratch");
  if (task.stdin_bytes) add("--stdin", "stdin.txt");
  each("--needs", body.inputs);
  each("--from", body.outputs_of);
  each("--out", body.outputs);
  add("--priority", body.priority);
  add("--retries", body.retries);
  if (body.visitors) words.push(body.visitors === true ? "--visitors" : `--visitors=${body.visitors}`);
  add("--visitors-min", body.visitors_min);
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

/** A curl command that posts a body, with a new token. */
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
