/** State that several views share. Each view keeps its own state itself. */

import { computed, signal } from "./lib.js";

/** The nodes as `GET /api/v1/nodes` lists them, by name. */
export const nodes = signal([]);

/** The latest answer of `GET /api/v1/stats`, or null. */
export const stats = signal(null);

/** Dispatcher, epoch and standbys, which both answers contain, or null. */
export const mesh = signal(null);

/**
 * The last minutes: one point for each poll, oldest first.
 * @type {import("../vendor/signals.js").Signal<{at: number, queued: number, running: number, rate: number}[]>}
 */
export const history = signal([]);

/** State of the connection: `connecting`, `live` or `waiting`. */
export const link = signal("connecting");

/** The banner, or null. @type {{kind: string, text: string}} */
export const banner = signal(null);

/** Milliseconds since 1970 by the clock of the node, updated each second, for ages. */
export const now = signal(Date.now());

/** Short messages at the edge of the page, which disappear by themselves. */
export const toasts = signal([]);

export const dispatcher = computed(
  () => nodes.value.find((node) => node.role === "dispatcher") ?? null,
);

const POINTS_MAX = 300;
const TOAST_MS = 8000;
const TOASTS_MAX = 4;
const SKEW_MS = 5000; //: smaller differences may be delays
let toastId = 0;
let aheadMs = 0; //: of the node's clock, if that of this browser is wrong

/** Notes the time of an answer, as its header has it: times of tasks are by that clock. */
export function timeCame(date) {
  const ms = Date.parse(date) - Date.now();
  aheadMs = Math.abs(ms) > SKEW_MS ? ms : 0;
}

/** Adds the history of the dispatcher before the points of this page. */
export function historyCame({ points }) {
  const first = history.value[0]?.at ?? Infinity;
  const known = points.map(({ at, ended_per_second: rate, ...rest }) => ({ ...rest, at: Date.parse(at), rate }));
  history.value = [...known.filter(({ at }) => at < first), ...history.value].slice(-POINTS_MAX);
}

/** Stores new counts, and adds a point to the history. */
export function countsCame(counts, at = Date.now() + aheadMs) {
  const before = history.value.at(-1);
  const { queued, running, completed, failed, cancelled } = counts.tasks;
  const ended = completed + failed + cancelled;
  const passed = before && (at - before.at) / 1000;
  // Points of the dispatcher have a rate and no sum.
  let rate = before?.rate ?? 0;
  if (before?.ended !== undefined && passed > 0) rate = Math.max(0, ended - before.ended) / passed;
  stats.value = counts;
  history.value = [...history.value, { at, queued, running, ended, rate }].slice(-POINTS_MAX);
}

/**
 * Shows a short message: `tell("3 tasks cancelled")`.
 * @param {string} text
 * @param {{kind?: "info"|"good"|"bad", hint?: string}} [more]
 */
export function tell(text, { kind = "info", hint = "" } = {}) {
  const same = toasts.value.find((one) => one.text === text && one.hint === hint);
  if (same) return;
  const id = ++toastId;
  toasts.value = [...toasts.value, { id, text, kind, hint }].slice(-TOASTS_MAX);
  setTimeout(() => untell(id), TOAST_MS);
}

/** Removes a message. */
export function untell(id) {
  toasts.value = toasts.value.filter((one) => one.id !== id);
}

setInterval(() => {
  if (!document.hidden) now.value = Date.now() + aheadMs;
}, 1000);
