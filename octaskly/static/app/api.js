/**
 * Requests to the node that served this page. It forwards them to the dispatcher if needed.
 *
 *     const { tasks } = await get("/api/v1/tasks", { limit: 50 });
 *     await post(`/api/v1/tasks/${id}/retry`);
 *
 * A failure throws an `ApiError`, which a toast has shown unless it is `quiet`.
 */

import { end, session } from "./session.js";
import { tell, timeCame } from "./store.js";

const TIMEOUT_MS = 30_000;
const REVOKE_MS = 60_000; //: after a download has begun
const SILENT = { status: 0, error: "The node does not answer", hint: "To find out why, type octaskly doctor in a terminal on that machine." };

/** A refused request, or one without an answer (status 0). */
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
 * @property {boolean} [quiet] Show no toast: the caller shows the error.
 * @property {AbortSignal} [signal] Aborts it; then it throws AbortError.
 * @property {number} [timeoutMs]
 * @property {Record<string, string>} [headers]
 */

/** Returns true if the same request may succeed later. */
export const mayPass = ({ status }) => status === 0 || status === 429 || status >= 500;

/** @param {object} [query] Parameters; null and "" are left out. */
export const get = (path, query = {}, options = {}) =>
  json("GET", path + search(query), undefined, options);
export const post = (path, body, options = {}) => json("POST", path, body, options);
export const del = (path, query = {}, options = {}) =>
  json("DELETE", path + search(query), undefined, options);

/**
 * Sends a request; returns the `Response` of a success.
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
 * Saves an answer as a file. A plain link could not send the token. Browsers keep large
 * answers on disk.
 */
export async function download(path, name, options = {}) {
  const answer = await send("GET", path, undefined, { ...options, timeoutMs: 0 });
  let url;
  try {
    url = URL.createObjectURL(await answer.blob());
  } catch (problem) {
    if (options.signal?.aborted) throw problem;
    const broken = new ApiError({ status: 0, error: `The download of ${name} was interrupted`, hint: "Try again." });
    tell(broken.error, { kind: "bad", hint: broken.hint });
    throw broken;
  }
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), REVOKE_MS);
}

/**
 * Sends bytes and reports the progress, which `fetch` cannot.
 * @param {Blob} body A file is read while it is sent, so it may have any size.
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
    throw new ApiError({ status: 0, error: "The response was interrupted", hint: "To find out why, type octaskly doctor in a terminal on that machine." });
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
    throw new ApiError(problem.name === "TimeoutError" ? { ...SILENT, error: "The node did not answer in time" } : SILENT);
  }
  timeCame(answer.headers.get("Date"));
  if (answer.ok) return answer;
  throw refusal(answer.status, answer.statusText, await answer.json().catch(() => ({})), given);
}

/** Returns an answer as an error. */
function refusal(status, statusText, said, given) {
  const problem = new ApiError({ status, error: said.error ?? statusText, hint: said.hint, field: said.field });
  // If the token was renewed meanwhile, the answer is not about the new one.
  if (status === 401 && given !== null && session.value?.token === given.token) end(problem);
  return problem;
}

function search(query) {
  const given = Object.entries(query).filter(([, value]) => value != null && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
}
