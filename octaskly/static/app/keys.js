/**
 * Keyboard shortcuts. Views add keys while they are shown:
 *
 *     useKeys({ j: next, k: previous, "/": focusSearch, "g n": () => go(["nodes"]) });
 *
 * Keys do nothing in a text field, or with Ctrl, Alt or Meta.
 */

import { useLayoutEffect, useRef } from "./lib.js";

const SECOND_KEY_MS = 1200;
const TYPING = "input, textarea, select, [contenteditable]";

/** @type {Set<{current: Record<string, (event: KeyboardEvent) => void>}>} */
const layers = new Set();
let first = null; //: first key of a shortcut with two keys, and its expiry

/** @param {Record<string, (event: KeyboardEvent) => void>} keys */
export function useKeys(keys) {
  const layer = useRef(keys);
  layer.current = keys;
  // Not after the next paint: a key counts from the moment the view is shown.
  useLayoutEffect(() => {
    layers.add(layer);
    return () => layers.delete(layer);
  }, []);
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  if (event.target instanceof Element && event.target.closest(TYPING)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (document.querySelector("dialog[open]") !== null) return; // It has its own keys.
  const isSecond = first !== null && first.until > event.timeStamp;
  const name = isSecond ? `${first.key} ${event.key}` : event.key;
  first = null;
  const found = [...layers].reverse().find((layer) => Object.hasOwn(layer.current, name));
  if (found !== undefined) {
    event.preventDefault();
    found.current[name](event);
  } else if (!isSecond && event.key.length === 1) {
    first = { key: event.key, until: event.timeStamp + SECOND_KEY_MS };
  }
});
