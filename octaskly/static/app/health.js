/** What is wrong with the mesh, worst first, each with what to do about it. */

import { plural } from "./format.js";

const FULL = 0.92; //: of a machine's memory
const FAR_BEHIND = 1000;
const REMEDIES = {
  disk: "Free some room on it.",
  memory: "Give tasks a limit with --limit memory_mb=N.",
  launchers: "Its log says why none starts. Was its program replaced? Then restart the agent.",
};

/**
 * @typedef {object} Warning
 * @property {"bad"|"warn"} kind
 * @property {string} text
 * @property {string} hint
 * @property {string} [command]
 */

/** @returns {Warning[]} */
export function warnings(nodes, mesh, stats) {
  return [...ofNodes(nodes), ...ofCopies(nodes, mesh), ...ofQueue(nodes, stats), ...ofVersions(nodes)]
    .sort((a, b) => (a.kind === b.kind ? 0 : a.kind === "bad" ? -1 : 1));
}

function* ofNodes(nodes) {
  const lost = nodes.filter(({ state }) => state === "lost");
  if (lost.length > 0) {
    yield {
      kind: "bad",
      text: `${names(lost)} ${lost.length === 1 ? "is" : "are"} lost`,
      hint: "What ran there runs again elsewhere. Is the machine on, and its agent running?",
      command: "octaskly service status",
    };
  }
  for (const short of Object.keys(REMEDIES)) {
    const some = nodes.filter((node) => node.state === "ready" && node.short_of === short);
    if (some.length > 0) {
      yield {
        kind: "warn",
        text: `${names(some)} ${some.length === 1 ? "is" : "are"} short of ${short}`,
        hint: `No new work goes there until that is over. ${REMEDIES[short]}`,
      };
    }
  }
  const full = nodes.filter((node) => node.state !== "lost" && !node.short_of
    && node.memory_mb > 0 && node.load.memory_used_mb / node.memory_mb > FULL);
  if (full.length > 0) {
    yield { kind: "warn", text: `The memory of ${names(full)} is nearly used up`, hint: "Fewer slots there, or limits for tasks, keep it from standing still." };
  }
}

function* ofCopies(nodes, mesh) {
  const others = nodes.filter(({ role, state }) => role !== "dispatcher" && state !== "lost");
  if (mesh && mesh.replicas === 1 && others.length > 0) {
    yield { kind: "warn", text: "New tasks have one copy only", hint: "A standby is still catching up. Until then, a dispatcher that dies takes what it accepted last with it until it is back." };
  }
  for (const { name, lag, state } of mesh?.standbys ?? []) {
    if (state === "joining" && lag > FAR_BEHIND) {
      yield { kind: "warn", text: `${name} is ${plural(lag, "entry", "entries")} behind`, hint: "It copies the log and becomes a standby once it has all of it." };
    }
  }
}

function* ofQueue(nodes, stats) {
  const takers = nodes.filter(({ state, short_of: short }) => state === "ready" && !short);
  if (stats?.tasks.queued > 0 && takers.length === 0) {
    yield { kind: "bad", text: "No node takes work", hint: "All are draining, paused, short of something or lost.", command: "octaskly resume NODE" };
  }
}

function* ofVersions(nodes) {
  const versions = new Set(nodes.filter(({ state }) => state !== "lost").map(({ version }) => version));
  if (versions.size > 1) {
    yield { kind: "warn", text: `Agents of ${versions.size} versions: ${[...versions].sort().join(", ")}`, hint: "They work together, but update them all soon." };
  }
}

function names(nodes) {
  const shown = nodes.slice(0, 3).map(({ name }) => name);
  const more = nodes.length - shown.length;
  return more > 0 ? `${shown.join(", ")} and ${more} more` : shown.join(", ").replace(/, ([^,]*)$/, " and $1");
}
