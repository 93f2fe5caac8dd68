/** Values as text. Times of the API are UTC with a trailing Z. */

const JOINER = "((?<=[\\p{Extended_Pictographic}\\p{EMod}\\ufe0f])\\u200d(?=\\p{Extended_Pictographic}))";
const HIDDEN = new RegExp(`${JOINER}|[\\p{C}\\p{Zl}\\p{Zp}]`, "gu");
const HIDDEN_IN_LINES = new RegExp(`${JOINER}|[^\\P{C}\\n\\t]|[\\p{Zl}\\p{Zp}]`, "gu");
const UNITS = [[86_400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

/** `< 1 ms`, `0.4 s`, `12 s`, `3 min 5 s`, `2 h 10 min`, `4 d`: at most two units. */
export function duration(ms) {
  if (ms == null || Number.isNaN(ms)) return "–";
  if (ms < 1) return "< 1 ms";
  if (ms < 1000) return ms < 10 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)} s`;
  return inUnits(Math.round(ms / 1000));
}

/** Time since a date, in whole seconds. @param {string|null} at */
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

/** Time until the end of something: `3 min left`; "" for less than a second. */
export function remaining(ms) {
  if (!(ms >= 1000)) return "";
  const [size, unit] = UNITS.find(([least]) => ms >= least * 1000);
  return `${Math.round(ms / 1000 / size)} ${unit} left`;
}

/** `2.3 per second`, `12 per minute`, `4.0 per hour`: in the unit with the nearest number. */
export function pace(perS) {
  const [many, unit] = [[perS, "second"], [perS * 60, "minute"], [perS * 3600, "hour"]].find(([n]) => n >= 1) ?? [perS * 3600, "hour"];
  return `${rate(many)} per ${unit}`;
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

/** Local time; with the date if it is not today: `2026-11-25 21:24:30`. */
export function clock(at) {
  if (!at) return "–";
  const when = new Date(at);
  const isToday = when.toDateString() === new Date().toDateString();
  return isToday ? timeOfDay(when) : `${when.toLocaleDateString("sv")} ${timeOfDay(when)}`;
}

const names = new Intl.Collator("en", { numeric: true });

/** Sort order of nodes in all lists. */
export const byName = (a, b) => names.compare(a.name, b.name);

/** `1,234`, in the language of the browser. */
export const count = (n) => (n == null ? "–" : n.toLocaleString());

/** `1 task`, `2 tasks`. */
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** `512 B`, `41 kB`, `3.1 GB`, as in `octaskly`. */
export const size = (n) => scaled(n, 1000, ["B", "kB", "MB", "GB", "TB"]);

/** Memory of a machine or a task, which is counted in MiB: `512 MiB`, `15.6 GiB`. */
export const mebibytes = (n) => scaled(n, 1024, ["MiB", "GiB", "TiB"]);

function scaled(n, base, units) {
  if (n == null) return "–";
  let unit = 0;
  while (n >= base - 0.5 && unit < units.length - 1) {
    n /= base;
    unit += 1;
  }
  return `${n.toFixed(unit && n < 9.95 ? 1 : 0)} ${units[unit]}`;
}

/**
 * Untrusted text with its invisible and direction-changing characters as code points:
 * `photo\u{202e}gpj.exe`. The joiner inside an emoji stays.
 */
export const visible = (text) => text.replace(HIDDEN, shownChar);

/** A command, which may have several lines. */
export const shownCommand = (command) => command.replace(HIDDEN_IN_LINES, shownChar);

const shownChar = (char, joiner) => joiner ?? `\\u{${char.codePointAt(0).toString(16)}}`;

/** `0`, `0.4`, `12`, `1.2k`: for the axes of charts. */
export function rate(n) {
  if (n == null) return "–";
  if (n >= 1000) return `${(n / 1000).toFixed(1)}k`;
  return n >= 10 || Number.isInteger(n) ? n.toFixed(0) : n.toFixed(1);
}

/** What a task runs: its Python call, or its command, of which lists have the beginning. */
export const commandOf = ({ call, command, command_truncated: isCut }) => (call ? visible(call) : shownCommand(isCut ? `${command}…` : command ?? ""));

/** The title of a task: its name, its Python call, or its id. */
export const titleOf = ({ name, call, id }) => visible(name ?? call ?? id);
