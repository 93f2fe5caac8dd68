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
const REVOKE_MS = 60_000; //: after a download has begun
const SILENT = { status: 0, error: "The node does not answer", hint: "octaskly doctor" };

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

/**
 * Saves an answer as a file. The browser keeps the bytes, those of large ones on its
 * disk: a plain link could show no token.
 */
export async function download(path, name, options = {}) {
  const answer = await send("GET", path, undefined, { ...options, timeoutMs: 0 });
  let url;
  try {
    url = URL.createObjectURL(await answer.blob());
  } catch (problem) {
    if (options.signal?.aborted) throw problem;
    const broken = new ApiError({ status: 0, error: `The download of ${name} broke off`, hint: "Try again." });
    tell(broken.error, { kind: "bad", hint: broken.hint });
    throw broken;
  }
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), REVOKE_MS);
}

/**
 * Sends bytes, and tells how many are on their way, which `fetch` cannot.
 * @param {Blob} body A file is read as it is sent, so it may be of any size.
 * @param {{signal: AbortSignal, progress: (sentBytes: number) => void}} how
 */
export function upload(path, body, { signal, progress }) {
  const given = session.value;
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    const stop = () => request.abort();
    request.open("POST", path);
    request.responseType = "json";
    if (given !== null) request.setRequestHeader("Authorization", `Bearer ${given.token}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = ({ loaded }) => progress(loaded);
    request.onload = () => {
      if (request.status < 300) done(request.response);
      else failed(refusal(request.status, request.statusText, request.response ?? {}, given));
    };
    request.onerror = () => failed(new ApiError(SILENT));
    request.onabort = () => failed(signal.reason);
    request.onloadend = () => signal.removeEventListener("abort", stop);
    signal.addEventListener("abort", stop);
    request.send(body);
  });
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
    throw new ApiError(problem.name === "TimeoutError" ? { ...SILENT, error: "No answer in time" } : SILENT);
  }
  if (answer.ok) return answer;
  throw refusal(answer.status, answer.statusText, await answer.json().catch(() => ({})), given);
}

/** Returns the error that an answer is. */
function refusal(status, statusText, said, given) {
  const problem = new ApiError({ status, error: said.error ?? statusText, hint: said.hint, field: said.field });
  // An answer to a token that was renewed meanwhile says nothing of the new one.
  if (status === 401 && given !== null && session.value?.token === given.token) end(problem);
  return problem;
}

function search(query) {
  const given = Object.entries(query).filter(([, value]) => value != null && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
}
