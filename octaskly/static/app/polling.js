/** Polls what has no events: load of the nodes, and counts. Pauses while the page is hidden. */

import { get } from "./api.js";
import { byName } from "./format.js";
import { batch, effect } from "./lib.js";
import { doubt, listen } from "./live.js";
import { session } from "./session.js";
import { banner, countsCame, historyCame, mesh, nodes } from "./store.js";

const EVERY_MS = 2000;
const MANY_NODES = 60; //: above this, answers are large, so they are requested less often
const TURNS_MANY = 3;
const SOON_MS = 150;
const BANNER_MS = 4000;
const QUIET = { quiet: true, timeoutMs: 10_000 }; //: a node without a dispatcher answers in 5 s

let timer = 0;
let turn = 0;
let isAsking = false;
let isChanged = true; //: an event changed the nodes

/** Keeps nodes and counts fresh during a session. */
export function keepFresh() {
  effect(() => {
    if (session.value === null) return;
    isChanged = true;
    queueMicrotask(() => { // Signals that it reads must not trigger the effect.
      ask();
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
  again(wait_ms);
}

function again(wait_ms) {
  clearTimeout(timer);
  timer = setTimeout(ask, wait_ms);
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
  if (session.value === null || document.hidden || isAsking) return;
  isAsking = true;
  turn += 1;
  try {
    const isDue = isChanged || nodes.value.length <= MANY_NODES || turn % TURNS_MANY === 0;
    isChanged = false;
    await Promise.all([
      isDue && get("/api/v1/nodes", {}, QUIET).then(nodesCame),
      get("/api/v1/stats", {}, QUIET).then(statsCame),
    ]);
  } catch (problem) {
    if (problem.status === undefined) throw problem; // A bug, not an answer.
    isChanged = true;
    if (problem.status === 0) doubt();
  } finally {
    isAsking = false;
    again(EVERY_MS);
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
