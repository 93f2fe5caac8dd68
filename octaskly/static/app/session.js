/**
 * The session of this page. `octaskly open` opens it with a code that works once, within a
 * minute. The page exchanges it for a short-lived token, and renews that while it is open.
 * The token stays in this tab: there is no cookie that another site could use.
 */

import { computed, signal } from "./lib.js";

const KEY = "octaskly.session";
const RENEW_AT = 0.6; //: of its life
const RETRY_MS = 5000;
const LATE_MS = 1000;

/**
 * @typedef {object} Session
 * @property {string} token
 * @property {string|null} expires_at Null for a pasted token.
 * @property {number} [until] When it expires by the clock of this browser, which may be wrong, in ms.
 * @property {string|null} subject
 * @property {string|null} role
 */

/** @type {import("../vendor/signals.js").Signal<Session|null>} */
export const session = signal(null);

/**
 * What the token permits. The API decides; this only hides buttons that it would refuse.
 * Machines are let in by users of this node only, so not with a pasted token, nor by the LAN address.
 */
export const may = {
  submit: computed(() => session.value?.role !== "viewer"),
  manage: computed(() => !["viewer", "client"].includes(session.value?.role)),
  admit: computed(() => session.value?.role === "admin" && session.value.expires_at !== null && location.protocol === "http:"),
};

/** Why there is no session, for the sign-in page. */
export const refusal = signal(null);

let timer = 0;

/** Starts with the code in the address, or with the session that this tab had before a reload. */
export async function begin() {
  addEventListener("hashchange", redeem); // An address with a code may be pasted into this tab.
  if (!(await redeem())) take(kept());
}

/** Starts with the code in the address; returns false if there is none. */
async function redeem() {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  if (code === null) return false;
  // Remove it from the address and the history before anything can fail.
  window.history.replaceState(null, "", location.pathname);
  dispatchEvent(new HashChangeEvent("hashchange"));
  try {
    take(dated(await post("/api/v1/sessions", { code })));
  } catch (problem) {
    refuse(problem);
  }
  return true;
}

/** Starts a session with a pasted token, which is not renewed. */
export function paste(text) {
  const token = text.trim();
  take({ token, expires_at: null, subject: null, role: claimsOf(token).role ?? null });
}

/** Adds to a new session when it expires by the clock of this browser. */
function dated(given) {
  const { iat, exp } = claimsOf(given.token);
  return { ...given, until: Date.now() + (exp - iat) * 1000 };
}

/** Returns what a token states; nothing if it cannot be read. */
function claimsOf(token) {
  try {
    return JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    return {}; // The API will refuse it.
  }
}

/** Ends the session. */
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
  if (given.expires_at !== null) later((given.until - Date.now()) * RENEW_AT);
}

function later(wait_ms) {
  // Timers stop while a machine sleeps; `awake` catches up.
  timer = setTimeout(renew, Math.max(wait_ms, LATE_MS));
}

async function renew() {
  const { token, until } = session.value;
  try {
    const renewed = await post("/api/v1/sessions/renew", undefined, token);
    if (session.value?.token === token) take(dated(renewed));
  } catch (problem) {
    if (session.value?.token !== token) return; // Signed out meanwhile, or in again.
    const isOver = until <= Date.now();
    if (problem.status === 401 || problem.status === 403 || isOver) refuse(problem);
    else later(RETRY_MS); // The node may be unreachable for a moment.
  }
}

function awake() {
  const given = session.value;
  if (document.hidden || given?.expires_at == null) return;
  if (given.until - Date.now() < 60_000) renew();
}

/** @returns {Session|null} */
function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY));
  } catch {
    return null;
  }
}

/** Like `post` of api.js, which needs a session. */
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
