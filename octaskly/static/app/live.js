/**
 * The event stream: one connection with server-sent events for the whole page.
 *
 *     useEffect(() => listen("task", (task) => { ... }), []);
 *     useEffect(() => listen("reset", reload), []);
 *
 * Types are those of `GET /api/v1/events`: `task`, `node` and `reset`. After `reset`, events
 * may be missing, so read again. The stream resumes where it ended, also after a change of
 * dispatcher, and in a tab that slept.
 */

import { effect } from "./lib.js";
import { session } from "./session.js";
import { WAITS_MS, pause, read } from "./sse.js";
import { link } from "./store.js";

/** @type {Map<string, Set<(data: any) => void>>} */
const listeners = new Map([["task", new Set()], ["node", new Set()], ["reset", new Set()]]);
let lastId = "";
let current = null; //: ends the open stream
let types = "";
let cut = null; //: closes the connection of that stream

/**
 * Calls `hear` with the data of each event of a type; returns a function that stops that.
 * The node sends task events only while somebody listens.
 */
export function listen(type, hear) {
  listeners.get(type).add(hear);
  retune();
  return () => {
    listeners.get(type).delete(hear);
    retune();
  };
}

/** Reconnects, because another request got no answer. */
export function doubt() {
  cut?.();
}

/** Keeps a stream open during a session. */
export function stayLive() {
  addEventListener("offline", doubt);
  effect(() => {
    const isIn = session.value !== null;
    current?.abort();
    current = null;
    if (isIn) run((current = new AbortController()));
  });
}

function wanted() {
  return listeners.get("task").size > 0 ? "task,node" : "node";
}

/** Reconnects if other types are wanted, after all views of this turn have changed. */
function retune() {
  queueMicrotask(() => {
    if (current !== null && types !== "" && types !== wanted()) {
      current.abort();
      run((current = new AbortController()));
    }
  });
}

async function run(mine) {
  let failures = 0;
  while (!mine.signal.aborted) {
    try {
      await follow(mine.signal, () => (failures = 0));
    } catch (problem) {
      if (mine.signal.aborted || problem.status === 401) return;
      if (problem.status === 400 && lastId !== "") {
        lastId = ""; // It belongs to another mesh.
        tellAll("reset", {});
      }
    }
    if (mine.signal.aborted) return;
    if (!document.hidden) link.value = "waiting"; // Else it rests.
    const wait_ms = WAITS_MS[Math.min(failures++, WAITS_MS.length - 1)];
    await pause(wait_ms * (0.75 + Math.random() / 2), mine.signal);
  }
}

async function follow(signal, connected) {
  types = wanted();
  const broken = new AbortController();
  const cutThis = () => broken.abort();
  const began = () => {
    connected();
    link.value = "live";
    cut = cutThis;
  };
  const how = { lastId, signal: AbortSignal.any([signal, broken.signal]), began };
  try {
    await read(`/api/v1/events?types=${types}`, how, (event, data, id) => {
      if (id !== "") lastId = id;
      if (data !== undefined) tellAll(event, data);
    });
  } finally {
    if (cut === cutThis) cut = null;
  }
}

function tellAll(event, data) {
  for (const hear of listeners.get(event) ?? []) hear(data);
}
