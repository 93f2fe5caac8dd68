/** What no event tells: load of the nodes, and counts. Asked for while somebody looks. */

import { get } from "./api.js";
import { effect } from "./lib.js";
import { listen } from "./live.js";
import { session } from "./session.js";
import { banner, countsCame, mesh, nodes } from "./store.js";

const EVERY_MS = 2000;
const EVERY_MS_MANY = 5000; //: with so many nodes that each answer is large
const MANY_NODES = 60;
const SOON_MS = 150;
const BANNER_MS = 4000;

let timer = 0;
let isAsking = false;

/** Keeps nodes and counts fresh while somebody is signed in and looks. */
export function keepFresh() {
  effect(() => {
    if (session.value !== null) soon(0);
  });
  listen("node", () => soon(SOON_MS));
  listen("reset", () => soon(SOON_MS));
  document.addEventListener("visibilitychange", () => soon(0));
}

/** Asks within so many ms, and then at the usual pace. */
export function soon(wait_ms = SOON_MS) {
  clearTimeout(timer);
  timer = setTimeout(ask, wait_ms);
}

async function ask() {
  if (session.value === null || document.hidden || isAsking) return;
  isAsking = true;
  try {
    const [seen, counts] = await Promise.all([
      get("/api/v1/nodes", {}, { quiet: true }),
      get("/api/v1/stats", {}, { quiet: true }),
    ]);
    nodes.value = seen.nodes.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
    noteReign(mesh.value, seen);
    countsCame(counts);
  } catch (problem) {
    if (problem.status === undefined) throw problem; // No request: a fault of ours.
  } finally {
    isAsking = false;
    soon(nodes.value.length > MANY_NODES ? EVERY_MS_MANY : EVERY_MS);
  }
}

/** Says for a moment that another node is dispatcher now. */
function noteReign(before, after) {
  if (before === null || before.epoch.term >= after.epoch.term) return;
  if (before.epoch.node === after.epoch.node) return;
  const name = after.nodes.find((node) => node.id === after.epoch.node)?.name ?? "another node";
  const took = after.last_failover?.duration_ms;
  const text = `${name} is dispatcher now`
    + (took ? `, after ${(took / 1000).toFixed(1)} s without one` : "")
    + (before.replicas > 1 ? "; nothing was lost" : "");
  const said = { kind: "moved", text };
  banner.value = said;
  setTimeout(() => {
    if (banner.value === said) banner.value = null;
  }, BANNER_MS);
}
