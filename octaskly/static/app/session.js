/**
 * Who this page is. `octaskly open` opens it with a code that is good once, for a minute;
 * it is swapped for a short token, which is renewed while the page lives. The token
 * stays in this tab: no cookie exists that another site could ride on.
 */

import { signal } from "./lib.js";

const KEY = "octaskly.session";
const RENEW_AT = 0.6; //: of its life
const RETRY_MS = 5000;
const LATE_MS = 1000;

/**
 * @typedef {object} Session
 * @property {string} token
 * @property {string|null} expires_at Null for a token that somebody pasted.
 * @property {string|null} subject
 * @property {string|null} role
 */

/** @type {import("../vendor/signals.js").Signal<Session|null>} */
export const session = signal(null);

/** Why there is no session: shown where one signs in. */
export const refusal = signal(null);

let timer = 0;

/** Begins with the code of the address, or with what this tab had before a reload. */
export async function begin() {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  if (code === null) {
    take(kept());
    return;
  }
  // Out of the address and its history before anything else can go wrong.
  window.history.replaceState(null, "", location.pathname);
  dispatchEvent(new HashChangeEvent("hashchange"));
  try {
    take(await post("/api/v1/sessions", { code }));
  } catch (problem) {
    refuse(problem);
  }
}

/** Takes a token that somebody pasted; it lasts as long as it is good. */
export function paste(token) {
  take({ token: token.trim(), expires_at: null, subject: null, role: null });
}

/** Forgets the token. */
export function end(problem = null) {
  if (problem === null) take(null);
  else refuse(problem);
}

function refuse(problem) {
  const wasIn = session.value !== null;
  take(null);
  refusal.value = {
    text: wasIn ? "You are signed out" : "This page could not sign you in",
    hint: problem.hint || problem.error || "The node does not answer.",
  };
}

/** @param {Session|null} given */
function take(given) {
  clearTimeout(timer);
  session.value = given;
  if (given === null) {
    sessionStorage.removeItem(KEY);
    return;
  }
  refusal.value = null;
  sessionStorage.setItem(KEY, JSON.stringify(given));
  if (given.expires_at !== null) later((Date.parse(given.expires_at) - Date.now()) * RENEW_AT);
}

function later(wait_ms) {
  // A timer does not run while a machine sleeps: `awake` asks again.
  timer = setTimeout(renew, Math.max(wait_ms, LATE_MS));
}

async function renew() {
  const { token, expires_at } = session.value;
  try {
    take(await post("/api/v1/sessions/renew", undefined, token));
  } catch (problem) {
    const isOver = Date.parse(expires_at) <= Date.now();
    if (problem.status === 401 || problem.status === 403 || isOver) refuse(problem);
    else later(RETRY_MS); // The node is away for a moment.
  }
}

function awake() {
  const given = session.value;
  if (document.hidden || given?.expires_at == null) return;
  if (Date.parse(given.expires_at) - Date.now() < 60_000) renew();
}

/** @returns {Session|null} */
function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY));
  } catch {
    return null;
  }
}

/** Sends what `api.js` cannot: it needs a session, and this makes one. */
async function post(path, body, token) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (token !== undefined) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  const said = await answer.json();
  if (!answer.ok) throw { ...said, status: answer.status };
  return said;
}

document.addEventListener("visibilitychange", awake);
