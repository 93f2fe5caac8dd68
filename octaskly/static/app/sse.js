/**
 * Reads one stream of server-sent events to its end, with `fetch`, because an EventSource
 * cannot send a token.
 */

import { send } from "./api.js";

/** Delays before reconnecting, by the number of failures in a row. */
export const WAITS_MS = [200, 500, 1000, 2000, 5000];

const QUIET_MS = 8000; //: the node sends a keepalive every 3 s
const HIDDEN_MS = 10_000; //: a tab in the background for so long needs no stream
const REST_MS = 3_600_000; //: ends when the tab is in sight

/**
 * While the page is hidden, it has no connection: a browser opens only six to a node for
 * all of its tabs.
 *
 * @param {string} target
 * @param {{lastId: string, signal: AbortSignal, began?: () => void}} how
 * @param {(event: string, data: any, id: string) => void} hear `data` is undefined if
 *   only the id changes; `id` is "" if it does not.
 */
export async function read(target, { lastId, signal, began = () => {} }, hear) {
  while (document.hidden && !signal.aborted) await pause(REST_MS, signal);
  const silence = new AbortController();
  const headers = { Accept: "text/event-stream" };
  if (lastId !== "") headers["Last-Event-ID"] = lastId;
  const answer = await send("GET", target, undefined, {
    headers, signal: AbortSignal.any([signal, silence.signal]), timeoutMs: 0, quiet: true,
  });
  began();
  let watch = 0;
  let rest = 0;
  const look = () => {
    clearTimeout(rest);
    if (document.hidden) rest = setTimeout(() => silence.abort(), HIDDEN_MS);
  };
  document.addEventListener("visibilitychange", look, { signal: silence.signal });
  try {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const take = taker(hear);
    for (;;) {
      watch = setTimeout(() => silence.abort(), QUIET_MS);
      const { value, done } = await reader.read();
      clearTimeout(watch);
      if (done) return;
      take(value);
    }
  } finally {
    clearTimeout(watch);
    clearTimeout(rest);
    silence.abort(); // Lets go of the connection.
  }
}

/** Waits, until there is a sign that the connection works again. */
export function pause(waitMs, signal) {
  return new Promise((done) => {
    const over = new AbortController();
    const end = () => {
      over.abort();
      clearTimeout(timer);
      done();
    };
    const timer = setTimeout(end, waitMs);
    signal.addEventListener("abort", end, { signal: over.signal });
    addEventListener("online", end, { signal: over.signal });
    document.addEventListener("visibilitychange", end, { signal: over.signal });
  });
}

/** Returns a function that parses a stream in pieces of any size. */
export function taker(hear) {
  let rest = "";
  return (piece) => {
    const frames = (rest + piece).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) hearFrame(frame, hear);
  };
}

function hearFrame(frame, hear) {
  const fields = { event: "message", data: "", id: "" };
  for (const line of frame.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).replace(/^ /, "");
  }
  const { event, data, id } = fields;
  if (data !== "" || id !== "") hear(event, data === "" ? undefined : JSON.parse(data), id);
}
