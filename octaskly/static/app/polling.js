/** Polls what has no events: load of the nodes, and counts. Pauses while the page is hidden. */

import { get } from "./api.js";
import { byName } from "./format.js";
import { batch, effect } from "./lib.js";
import { doubt, listen } from "./live.js";
import { Reader } from "./reading.js";
import { session } from "./session.js";
import { banner, countsCame, historyCame, mesh, nodes } from "./store.js";

const EVERY_MS = 2000;
const MANY_NODES = 60; //: above this, answers are large, so they are requested less often
const TURNS_MANY = 3;
const SOON_MS = 150;
const BANNER_MS = 4000;
const QUIET = { quiet: true, timeoutMs: 10_000 }; //: a node without a dispatcher answers in 5 s

const reader = new Reader(ask);
let turn = 0;
let isChanged = true; //: an event changed the nodes
let changes = 0; //: of nodes by this page

/** Keeps nodes and counts fresh during a session. */
export function keepFresh() {
  effect(() => {
    if (session.value === null) return;
    isChanged = true;
    queueMicrotask(() => { // Signals that it reads must not trigger the effect.
      reader.read();
      remember();
    });
  });
  listen("node", () => soon());
  listen("reset", () => soon());
  document.addEventListener("visibilitychange", () => soon(0));
}

/** Polls within so many ms, and then at the usual pace. */
export function soon(wait_ms = SOON_MS) {
  isChanged = true;
  reader.soon(wait_ms);
}

/** Shows the state of a node after an order; older answers do not count. */
export function nodeCame({ id, state, running }) {
  ordered(nodes.value.map((one) => (one.id === id ? { ...one, state, running } : one)));
}

/** Removes a node from view, also if an older answer still lists it. */
export function nodeLeft(id) {
  ordered(nodes.value.filter((one) => one.id !== id));
}

function ordered(now) {
  changes += 1;
  nodes.value = now;
  soon();
}

/** Requests the history before this page was opened, once. */
async function remember() {
  try {
    historyCame(await get("/api/v1/stats/history", {}, QUIET));
  } catch (problem) {
    if (problem.status === undefined) throw problem;
  }
}

async function ask() {
  if (session.value === null || document.hidden) return;
  turn += 1;
  const before = changes;
  try {
    const isDue = isChanged || nodes.value.length <= MANY_NODES || turn % TURNS_MANY === 0;
    isChanged = false;
    await Promise.all([
      isDue && get("/api/v1/nodes", {}, QUIET).then((seen) => changes === before && nodesCame(seen)),
      get("/api/v1/stats", {}, QUIET).then(statsCame),
    ]);
  } catch (problem) {
    if (problem.status === undefined) throw problem; // A bug, not an answer.
    isChanged = true;
    if (problem.status === 0) doubt();
  } finally {
    reader.soon(EVERY_MS);
  }
}

/** Each answer is shown when it arrives: nodes do not wait for counts. */
function nodesCame(seen) {
  batch(() => {
    nodes.value = seen.nodes.sort(byName);
    meshCame(seen);
  });
}

function statsCame(seen) {
  batch(() => {
    countsCame(seen);
    meshCame(seen.mesh);
  });
}

/** Stores the state of the mesh, unless it is from an earlier dispatcher. */
function meshCame(said) {
  const before = mesh.value;
  if (before !== null && before.epoch.term > said.epoch.term) return;
  mesh.value = said;
  if (before !== null) noteEpoch(before, said);
}

/** Shows for a moment that another node is dispatcher now. */
function noteEpoch(before, after) {
  if (before.epoch.term === after.epoch.term || before.epoch.node === after.epoch.node) return;
  const name = nodes.value.find((node) => node.id === after.epoch.node)?.name ?? "another node";
  const took = after.last_failover?.duration_ms;
  const text = `${name} is the dispatcher now`
    + (took ? `, after ${(took / 1000).toFixed(1)} s without one` : "")
    + (before.replicas > 1 ? "; nothing was lost" : "");
  const said = { kind: "moved", text };
  banner.value = said;
  setTimeout(() => {
    if (banner.value === said) banner.value = null;
  }, BANNER_MS);
}
