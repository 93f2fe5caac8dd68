/** Problems of the mesh, worst first, each with advice. */

import { plural } from "./format.js";

const FULL = 0.92; //: of a machine's memory
const FAR_BEHIND = 1000;
const SHORTAGES = { disk: "short of disk space", memory: "short of memory", launchers: "unable to start tasks" };
const REMEDIES = {
  disk: "Free some space there.",
  memory: "Limit the memory of tasks with --limit memory_mb=N.",
  launchers: "The agent's log there says why. If Octaskly was updated, restart the agent.",
};

/** What happens to the tasks of a lost node. */
export const LOST = "Its tasks run again on other nodes, except those that only this node may run.";

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
      hint: `${LOST} Is ${lost.length === 1 ? "the machine" : "each machine"} on and connected? Then type this in a terminal on ${lost.length === 1 ? lost[0].name : "each of them"}:`,
      command: "octaskly service status",
    };
  }
  for (const short of Object.keys(REMEDIES)) {
    const some = nodes.filter((node) => node.state === "ready" && node.short_of === short);
    if (some.length > 0) {
      yield {
        kind: "warn",
        text: `${names(some)} ${some.length === 1 ? "is" : "are"} ${SHORTAGES[short]}`,
        hint: `No new tasks start there for now. ${REMEDIES[short]}`,
      };
    }
  }
  const full = nodes.filter((node) => node.state !== "lost" && !node.short_of
    && node.memory_mb > 0 && node.load.memory_used_mb / node.memory_mb > FULL);
  if (full.length > 0) {
    yield { kind: "warn", text: `The memory of ${names(full)} is almost full`, hint: "Give the node fewer slots, or give its tasks memory limits." };
  }
}

function* ofCopies(nodes, mesh) {
  const others = nodes.filter(({ role, state }) => role !== "dispatcher" && state !== "lost");
  if (mesh && mesh.replicas === 1 && others.length > 0) {
    yield { kind: "warn", text: "New tasks are stored on one node only", hint: "A standby is still joining. If the dispatcher fails before that, the latest tasks are unavailable until it is back." };
  }
  for (const { name, lag, state } of mesh?.standbys ?? []) {
    if (state === "joining" && lag > FAR_BEHIND) {
      yield { kind: "warn", text: `${name} is ${plural(lag, "entry", "entries")} behind`, hint: "It is copying the log, and becomes a standby when it has all of it." };
    }
  }
}

function* ofQueue(nodes, stats) {
  const takers = nodes.filter(({ state, short_of: short }) => state === "ready" && !short);
  if (stats?.tasks.queued > 0 && takers.length === 0) {
    yield { kind: "bad", text: "No node accepts tasks", hint: "All nodes are draining, paused, lost, or short of disk or memory. To resume a node, type this in any terminal of the mesh:", command: "octaskly resume NODE" };
  }
}

function* ofVersions(nodes) {
  const versions = new Set(nodes.filter(({ state }) => state !== "lost").map(({ version }) => version));
  if (versions.size > 1) {
    yield { kind: "warn", text: `Nodes run ${versions.size} versions of Octaskly: ${[...versions].sort().join(", ")}`, hint: "They work together, but update all of them soon." };
  }
}

function names(nodes) {
  const shown = nodes.slice(0, 3).map(({ name }) => name);
  const more = nodes.length - shown.length;
  return more > 0 ? `${shown.join(", ")} and ${more} more` : shown.join(", ").replace(/, ([^,]*)$/, " and $1");
}
