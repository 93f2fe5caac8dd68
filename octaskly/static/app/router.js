/**
 * The place in the page: the part of the address after `#`, so that links can be shared: `#/tasks?status=failed`, `#/tasks/task-012-0a1b2c3d`.
 */

import { signal } from "./lib.js";

/**
 * @typedef {object} Place
 * @property {string} tab First part of the path, such as `tasks`.
 * @property {string[]} parts The other parts, decoded.
 * @property {URLSearchParams} query
 */

/** @type {import("../vendor/signals.js").Signal<Place>} */
export const place = signal(parse(location.hash));

/** Returns the address of a place: `href(["tasks", id], { status: "failed" })`. */
export function href(parts, query = {}) {
  const path = parts.map((part) => encodeURIComponent(part)).join("/");
  const given = Object.entries(query).filter(([, value]) => value !== "" && value != null);
  const text = new URLSearchParams(given).toString();
  return `#/${path}${text && `?${text}`}`;
}

/** Goes to a place; `replace` removes the current one from the history. */
export function go(parts, query = {}, { replace = false } = {}) {
  const target = href(parts, query);
  if (target === location.hash) return;
  if (replace) {
    history.replaceState(null, "", target);
    place.value = parse(target);
  } else {
    location.hash = target;
  }
}

/** @returns {Place} */
function parse(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const [tab, ...parts] = path.split("/").map(decoded);
  return { tab: tab || "overview", parts, query: new URLSearchParams(query) };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // For example a lone `%`.
  }
}

addEventListener("hashchange", () => {
  place.value = parse(location.hash);
});
