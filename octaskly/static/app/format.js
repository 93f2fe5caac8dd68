/** Values as people read them. Times of the API are UTC with a trailing Z. */

const UNITS = [[86_400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

/** `0.4 s`, `12 s`, `3 min 5 s`, `2 h 10 min`, `4 d`: at most two units. */
export function duration(ms) {
  if (ms == null || Number.isNaN(ms)) return "–";
  if (ms < 1000) return ms < 10 ? `${Math.max(0, Math.round(ms))} ms` : `${(ms / 1000).toFixed(2)} s`;
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)} s`;
  return inUnits(Math.round(ms / 1000));
}

/** How long something goes on, in whole seconds, as it ticks. @param {string|null} at */
export function elapsed(at, nowMs) {
  return at ? inUnits(Math.max(0, Math.floor((nowMs - Date.parse(at)) / 1000))) : "–";
}

function inUnits(s) {
  const first = UNITS.findIndex(([size]) => s >= size || size === 1);
  const [size, unit] = UNITS[first];
  const rest = UNITS[first + 1];
  const more = rest ? Math.floor((s % size) / rest[0]) : 0;
  return `${Math.floor(s / size)} ${unit}${more ? ` ${more} ${rest[1]}` : ""}`;
}

/** `just now`, `12 s ago`, `3 h ago`. @param {string|null} at @param {number} nowMs */
export function ago(at, nowMs) {
  if (!at) return "–";
  const ms = nowMs - Date.parse(at);
  if (ms < 2000) return "just now";
  const s = Math.floor(ms / 1000);
  const [size, unit] = UNITS.find(([least]) => s >= least) ?? [1, "s"];
  return `${Math.floor(s / size)} ${unit} ago`;
}

/** Local time of day, `21:24:30`, of a date of the API or ms since 1970. */
export const timeOfDay = (at) => new Date(at).toLocaleTimeString("sv");

/** Local time of day; with the day where it is another one: `2026-11-25 21:24:30`. */
export function clock(at) {
  if (!at) return "–";
  const when = new Date(at);
  const isToday = when.toDateString() === new Date().toDateString();
  return isToday ? timeOfDay(when) : `${when.toLocaleDateString("sv")} ${timeOfDay(when)}`;
}

const names = new Intl.Collator("en", { numeric: true });

/** The order of nodes, wherever they are listed. */
export const byName = (a, b) => names.compare(a.name, b.name);

/** `1,234`, in the language of the browser. */
export const count = (n) => (n == null ? "–" : n.toLocaleString());

/** `1 task`, `2 tasks`. */
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** `512 B`, `1.4 KiB`, `2.0 GiB`. */
export function bytes(n) {
  if (n == null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${unit ? n.toFixed(n < 10 ? 1 : 0) : n} ${units[unit]}`;
}

/** `512 B`, `41 kB`, `3.1 GB`: of files, in the units of `octaskly`. */
export function size(n) {
  if (n == null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (n >= 999.5 && unit < units.length - 1) {
    n /= 1000;
    unit += 1;
  }
  return `${unit ? n.toFixed(n < 9.95 ? 1 : 0) : n} ${units[unit]}`;
}

/**
 * A text that somebody else chose, with each character that would hide or turn round a
 * part of it as its number: `photo\u{202e}gpj.exe`.
 */
export const visible = (text) => text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, numberOf);

/** A command as it is shown: over several lines, if it has them. */
export const shownCommand = (command) => command.replace(/[^\P{C}\n\t]|[\p{Zl}\p{Zp}]/gu, numberOf);

const numberOf = (char) => `\\u{${char.codePointAt(0).toString(16)}}`;

/** From MiB, as nodes tell their memory. */
export const mebibytes = (n) => bytes(n == null ? n : n * 1024 * 1024);

/** `0`, `0.4`, `12`, `1.2k`: tasks per second. */
export function rate(n) {
  if (n == null) return "–";
  if (n >= 1000) return `${(n / 1000).toFixed(1)}k`;
  return n >= 10 || Number.isInteger(n) ? n.toFixed(0) : n.toFixed(1);
}

/** The command of a task in a list, which may contain only its beginning. */
export const commandOf = (task) => shownCommand(task.command_truncated ? `${task.command}…` : task.command);

/** What a task is called: its name, or else its id. */
export const titleOf = ({ name, id }) => visible(name ?? id);
