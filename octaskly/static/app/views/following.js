/** The live output of one task, resumed after the last event. */

import { size } from "../format.js";
import { WAITS_MS, pause, read } from "../sse.js";
import { Output } from "./ansi.js";

const LINES_MAX = 20_000;

/**
 * Follows a task to its end; calls `changed` when there is more to draw.
 * @returns {{output: Output, state: {isOver: boolean, problem: object|null}, close: () => void}}
 */
export function follow(id, attempt, changed) {
  const over = new AbortController();
  const output = new Output(LINES_MAX);
  const state = { isOver: false, problem: null };
  let lastId = "";
  let frame = 0;
  const draw = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      changed();
    });
  };
  const hear = hearer(output, state);

  const run = async () => {
    for (let failures = 0; !over.signal.aborted && !state.isOver; failures += 1) {
      try {
        await read(path(id, attempt), { lastId, signal: over.signal }, (event, data, eventId) => {
          failures = 0;
          state.problem = null;
          if (eventId !== "") lastId = eventId;
          if (data !== undefined) hear(event, data);
          draw();
        });
      } catch (problem) {
        if (over.signal.aborted || problem.status === 401) return;
        state.problem = problem.status === undefined ? null : problem;
        if (problem.status === 404) state.isOver = true;
      }
      draw();
      if (!state.isOver) await pause(WAITS_MS[Math.min(failures, WAITS_MS.length - 1)], over.signal);
    }
  };
  run();
  return {
    output, state,
    close: () => {
      over.abort();
      cancelAnimationFrame(frame);
    },
  };
}

const path = (id, attempt) =>
  `/api/v1/tasks/${encodeURIComponent(id)}/logs?follow=true${attempt ? `&attempt=${attempt}` : ""}`;

/** Returns a function that turns events into lines. */
function hearer(output, state) {
  const streams = ["stdout", "stderr"];
  let pens;
  const begin = () => {
    pens = Object.fromEntries(streams.map((name) => [name, { pen: output.pen(name), decoder: new TextDecoder() }]));
  };
  begin();
  let isFirst = true;
  return (event, data) => {
    if (streams.includes(event)) {
      const { pen, decoder } = pens[event];
      pen.write(data.encoding === "base64" ? decoder.decode(bytesOf(data.data), { stream: true }) : data.data);
    } else if (event === "attempt") {
      if (!isFirst) begin();
      if (!isFirst || data.attempt > 1) {
        output.note(`attempt ${data.attempt} on ${data.node}${data.previous ? `; the previous one: ${data.previous}` : ""}`);
      }
      isFirst = false;
    } else if (event === "gap") {
      pens[data.stream]?.pen.end();
      output.note(`${size(data.bytes)} of ${data.stream} was not kept: ${data.reason}`);
    } else if (event === "end") {
      state.isOver = true;
    }
  };
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
