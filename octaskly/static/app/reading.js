/**
 * Answers that are read again after events. One request is on its way at a time, so no
 * answer overwrites a newer one, and frequent events delay none.
 */

import { mayPass } from "./api.js";
import { useEffect, useRef, useState } from "./lib.js";

export const RETRY_MS = 2000; //: after a failed request

/** Runs a function again and again, never twice at a time. */
export class Reader {
  #run;
  #over = new AbortController();
  #current = null;
  #next = null;
  #timer = 0;
  #due = Infinity;

  /** @param {(signal: AbortSignal) => Promise<void>} run The signal is aborted by `close`. */
  constructor(run) {
    this.#run = run;
  }

  /** Runs now, or after the present run, which may have begun too early. */
  read() {
    this.#unplan();
    if (this.#next !== null) return this.#next;
    if (this.#current === null) return this.#begin();
    const again = () => {
      this.#next = null;
      return this.#begin();
    };
    this.#next = this.#current.then(again, again);
    return this.#next;
  }

  /** Runs within so many ms. */
  soon(waitMs) {
    const due = performance.now() + waitMs;
    if (this.#due <= due || this.#over.signal.aborted) return;
    this.#unplan();
    this.#due = due;
    this.#timer = setTimeout(() => this.read(), waitMs);
  }

  close() {
    this.#over.abort();
    this.#unplan();
  }

  #unplan() {
    clearTimeout(this.#timer);
    this.#due = Infinity;
  }

  async #begin() {
    if (this.#over.signal.aborted) return;
    this.#current = this.#run(this.#over.signal).finally(() => (this.#current = null));
    await this.#current;
  }
}

/**
 * The latest answer of `ask`, and its error if the latest request failed; one that may
 * pass is sent again. Nothing is read before `reader.current.read()`.
 * @param {(signal: AbortSignal) => Promise<object>} ask
 * @param {unknown[]} keys What is asked for: a change ends the reader and begins another.
 */
export function useReader(ask, keys) {
  const [state, setState] = useState({ found: null, problem: null });
  const reader = useRef(null);
  useEffect(() => {
    const mine = new Reader(async (signal) => {
      try {
        const found = await ask(signal);
        if (!signal.aborted) setState({ found, problem: null });
      } catch (problem) {
        if (signal.aborted) return;
        if (problem.status === undefined) throw problem;
        setState((before) => ({ ...before, problem }));
        if (mayPass(problem)) mine.soon(RETRY_MS);
      }
    });
    reader.current = mine;
    return () => mine.close();
  }, keys);
  return { ...state, reader };
}
