/**
 * Requests to the node that served this page; it forwards what the dispatcher decides.
 *
 *     const { tasks } = await get("/api/v1/tasks", { limit: 50 });
 *     await post(`/api/v1/tasks/${id}/retry`);
 *
 * What fails throws an `ApiError`, and has been shown as a toast unless it is `quiet`.
 */

import { end, session } from "./session.js";
import { tell } from "./store.js";

const TIMEOUT_MS = 30_000;

/** A request that was refused, or got no answer (then its status is 0). */
export class ApiError extends Error {
  /** @param {{status: number, error: string, hint?: string, field?: string}} problem */
  constructor({ status, error, hint = "", field = "" }) {
    super(error);
    this.status = status;
    this.error = error;
    this.hint = hint;
    this.field = field;
  }
}

/**
 * @typedef {object} Options
 * @property {boolean} [quiet] Show no toast: the caller says what is wrong.
 * @property {AbortSignal} [signal] Ends it early; throws AbortError then.
 * @property {number} [timeoutMs]
 * @property {Record<string, string>} [headers]
 */

/** @param {object} [query] Parameters; those that are null or "" are left out. */
export const get = (path, query = {}, options = {}) =>
  json("GET", path + search(query), undefined, options);
export const post = (path, body, options = {}) => json("POST", path, body, options);
export const del = (path, query = {}, options = {}) =>
  json("DELETE", path + search(query), undefined, options);

/**
 * Sends a request; returns the `Response` of a success, whatever its body.
 * @param {Options} options
 */
export async function send(method, path, body, options = {}) {
  try {
    return await exchange(method, path, body, options);
  } catch (problem) {
    if (problem instanceof ApiError && !options.quiet && problem.status !== 401) {
      tell(problem.error, { kind: "bad", hint: problem.hint });
    }
    throw problem;
  }
}

async function json(method, path, body, options) {
  const answer = await send(method, path, body, options);
  if (answer.status === 204) return null;
  try {
    return await answer.json();
  } catch (problem) {
    if (options?.signal?.aborted) throw problem;
    throw new ApiError({ status: 0, error: "The answer broke off", hint: "octaskly doctor" });
  }
}

async function exchange(method, path, body, { signal, timeoutMs = TIMEOUT_MS, headers = {} }) {
  const given = session.value;
  const limits = [signal, timeoutMs && AbortSignal.timeout(timeoutMs)].filter(Boolean);
  const all = { ...headers };
  if (given !== null) all.Authorization = `Bearer ${given.token}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: all,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.any(limits),
    });
  } catch (problem) {
    if (signal?.aborted) throw problem;
    throw new ApiError({
      status: 0,
      error: problem.name === "TimeoutError" ? "No answer in time" : "The node does not answer",
      hint: "octaskly doctor",
    });
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  const problem = new ApiError({
    status: answer.status, error: said.error ?? answer.statusText, hint: said.hint, field: said.field,
  });
  // An answer to a token that was renewed meanwhile says nothing of the new one.
  if (answer.status === 401 && given !== null && session.value?.token === given.token) end(problem);
  throw problem;
}

function search(query) {
  const given = Object.entries(query).filter(([, value]) => value != null && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
}
