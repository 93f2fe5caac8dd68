/**
 * The lane of each attempt, and positions in time: arithmetic only.
 *
 * The log has the node of an attempt, but not its slot. A node runs at most as many
 * attempts as it has slots, so an attempt gets the first lane that was free at its start,
 * and stays there: there are as many lanes as slots, and nothing overlaps.
 */

export const SPAN_MS = [500, 6 * 3_600_000]; //: of the narrowest and the widest view
const SLACK_MS = 3; //: two times of one worker may be off by that
const BARS_MAX = 20_000;
const FUTURE = Number.POSITIVE_INFINITY;

/**
 * @typedef {object} Bar
 * @property {string} key
 * @property {number} start ms
 * @property {number} end ms; Infinity while it runs
 * @property {string} status
 * @property {string} family
 * @property {object} attempt as the API tells of it
 */

/** All recent bars, by node and lane. */
export class Lanes {
  /** @type {Map<string, Bar[][]>} node: lanes: bars in the order of time */
  nodes = new Map();
  /** @type {Map<string, {bar: Bar, node: string, lane: number}>} */
  #known = new Map();
  waiting = 0; //: attempts that wait for a slot on their node

  get size() {
    return this.#known.size;
  }

  /** Adds lanes until these nodes have one per slot; others keep theirs while they have bars. */
  fit(nodes) {
    const present = new Set(nodes.map(({ name }) => name));
    for (const [name, lanes] of this.nodes) {
      if (!present.has(name) && lanes.every((bars) => bars.length === 0)) this.nodes.delete(name);
    }
    for (const { name, slots } of nodes) {
      const lanes = this.#lanesOf(name);
      while (lanes.length < slots) lanes.push([]);
    }
  }

  /** Adds an answer of `GET /api/v1/attempts`. */
  take({ running, ended }) {
    const live = new Set(running.map(keyOf));
    for (const [key, { bar, node, lane }] of this.#known) {
      // It ended or was lost; a later answer may say how.
      if (bar.end === FUTURE && !live.has(key)) this.#remove(key, node, lane);
    }
    const bars = ended.filter((one) => one.started_at && one.completed_at).map((one) => barOf(one));
    for (const bar of bars.sort(byTime)) this.#put(bar);
    this.waiting = 0;
    for (const one of running) if (!this.#known.has(keyOf(one))) this.#begin(barOf(one));
    this.#forget();
  }

  #lanesOf(node) {
    if (!this.nodes.has(node)) this.nodes.set(node, [[]]);
    return this.nodes.get(node);
  }

  #put(bar) {
    if (this.#known.has(bar.key)) return;
    const node = bar.attempt.worker_id;
    const lanes = this.#lanesOf(node);
    let lane = lanes.findIndex((bars) => isFree(bars, bar));
    if (lane < 0) lane = leastEnd(lanes, bar.start); // A clock was set.
    this.#add(bar, node, lane);
  }

  /** A running attempt starts when it was assigned, or when a slot became free. */
  #begin(bar) {
    const node = bar.attempt.worker_id;
    const lanes = this.#lanesOf(node);
    const free = lanes.map((bars) => bars.at(-1)?.end ?? 0);
    const lane = free.indexOf(Math.min(...free));
    if (free[lane] === FUTURE) {
      this.waiting += 1;
      return;
    }
    const first = free.findIndex((end) => end <= bar.start);
    const chosen = first < 0 ? lane : first;
    this.#add({ ...bar, start: Math.max(bar.start, free[chosen]) }, node, chosen);
  }

  #add(bar, node, lane) {
    const bars = this.nodes.get(node)[lane];
    bars.splice(placeOf(bars, bar), 0, bar);
    this.#known.set(bar.key, { bar, node, lane });
  }

  #remove(key, node, lane) {
    const bars = this.nodes.get(node)[lane];
    bars.splice(bars.findIndex((bar) => bar.key === key), 1);
    this.#known.delete(key);
  }

  #forget() {
    if (this.#known.size <= BARS_MAX) return;
    const all = [...this.#known.entries()].sort(([, a], [, b]) => a.bar.end - b.bar.end);
    for (const [key, { node, lane }] of all.slice(0, all.length - BARS_MAX)) this.#remove(key, node, lane);
  }

  /** The bars between two times, the latest first. */
  between(from, until) {
    const found = [...this.#known.values()].filter(({ bar }) => bar.end >= from && bar.start <= until);
    return found.sort((a, b) => b.bar.start - a.bar.start);
  }
}

const keyOf = ({ id, attempt, worker_id: node }) => `${id}#${attempt}@${node}`;

function barOf(attempt) {
  const isLive = attempt.status === "running";
  return {
    key: keyOf(attempt),
    start: Date.parse(isLive ? attempt.assigned_at : attempt.started_at),
    end: isLive ? FUTURE : Date.parse(attempt.completed_at),
    status: attempt.status,
    family: attempt.call ? attempt.call.split("(", 1)[0] : familyOf(attempt.command),
    attempt,
  };
}

/** Of two attempts that started together, first the one that ended first: the other may have had its slot. */
const byTime = (a, b) => (a.start === b.start ? a.end - b.end : a.start - b.start);

/** The index in a lane at which a bar stands. */
const placeOf = (bars, bar) => bars.findLastIndex((one) => byTime(one, bar) <= 0) + 1;

function isFree(bars, bar) {
  const at = placeOf(bars, bar);
  const isAfterLast = at === 0 || bars[at - 1].end - SLACK_MS <= bar.start;
  return isAfterLast && (at === bars.length || bar.end - SLACK_MS <= bars[at].start);
}

function leastEnd(lanes, start) {
  const ends = lanes.map((bars) => bars.findLast((bar) => bar.start <= start)?.end ?? 0);
  return ends.indexOf(Math.min(...ends));
}

const BEFORE = /^(?:[A-Za-z_]\w*=\S*|sudo|env|nice|nohup|time|exec|command)$/;
const SHELLS = /^(?:sh|bash|dash|zsh)$/;
const INTERPRETERS = /^(?:python[\d.]*|node|ruby|perl|php|Rscript|julia)$/;

/** The usual name of a command: its program, or the script that an interpreter runs. */
export function familyOf(command) {
  const words = command.trim().slice(0, 200).split(/\s+/);
  while (words.length > 1 && BEFORE.test(words[0])) words.shift();
  const program = base(words[0]);
  const [, first = "", second = ""] = words;
  if (SHELLS.test(program) && /^-\w*c$/.test(first)) return familyOf(words.slice(2).join(" ").replace(/^['"]/, ""));
  if (INTERPRETERS.test(program)) {
    if (first === "-m" && second) return base(second);
    if (first && !first.startsWith("-")) return base(first);
  }
  return program || "task";
}

const base = (path) => path.replace(/^['"]|['";)]+$/g, "").split("/").pop().slice(0, 40);

const HUES = [45, 65, 85, 110, 135, 155, 175, 195, 215, 235, 255, 275, 295, 315, 335, 350]; //: red is for failures
const LIGHTS = [0.5, 0.6, 0.7];

/** A fixed hue and lightness for a word. */
export function toneOf(word) {
  let hash = 2166136261;
  for (let at = 0; at < word.length; at += 1) hash = Math.imul(hash ^ word.charCodeAt(at), 16777619) >>> 0;
  hash = (hash ^ (hash >>> 15)) >>> 0; // The last character must change all bits.
  return { hue: HUES[hash % HUES.length], light: LIGHTS[(hash >>> 12) % LIGHTS.length] };
}

/** A view of time, zoomed around a fixed point. */
export function zoomed({ from, span }, factor, around) {
  const wide = Math.min(SPAN_MS[1], Math.max(SPAN_MS[0], span * factor));
  return { from: around - ((around - from) / span) * wide, span: wide };
}

const STEPS_MS = [100, 200, 500, 1000, 2000, 5000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000, 3_600_000];

/** At most `most` times for marks on the axis. */
export function ticks(from, span, most) {
  const step = STEPS_MS.find((ms) => span / ms <= most) ?? STEPS_MS.at(-1);
  const marks = [];
  for (let at = Math.ceil(from / step) * step; at <= from + span; at += step) marks.push(at);
  return { step, marks };
}
