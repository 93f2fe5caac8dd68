/** Small parts that all views share, so that they look and behave alike. */

import { ago } from "./format.js";
import { html, useLayoutEffect, useRef, useState } from "./lib.js";
import { now, tell, toasts, untell } from "./store.js";

const ICON = new URL("../icon.svg", import.meta.url).pathname;

/** The sign of Octaskly; beside its name it says nothing new. */
export function Icon({ px }) {
  return html`<img src=${ICON} alt="" width=${px} height=${px} />`;
}

/** A state as a word with a dot: those of tasks and of nodes. */
export function State({ of }) {
  return html`<span class=${`state state-${of}`}>${of}</span>`;
}

/**
 * A button that shows that it works, until what it began is done.
 * @param {{onPress: () => unknown, kind?: "plain"|"primary"|"danger"|"quiet"|"small"}} props
 */
export function Button({ onPress, kind = "plain", disabled = false, children, ...rest }) {
  const [isBusy, setBusy] = useState(false);
  const press = async () => {
    setBusy(true);
    try {
      await onPress();
    } catch (problem) {
      // What a request refused, a toast has said.
      if (problem.status === undefined && problem.name !== "AbortError") throw problem;
    } finally {
      setBusy(false);
    }
  };
  return html`<button type="button" class=${`button ${kind}`} aria-busy=${isBusy}
    disabled=${disabled || isBusy} onClick=${press} ...${rest}>${children}</button>`;
}

/** How much of something is taken, 0 to 1, and from where on that is bad; `text` says it in words. */
export function Bar({ label, part, text, kind = "", hotAt = Infinity }) {
  const percent = Math.round(Math.min(1, Math.max(0, part || 0)) * 100);
  const heat = part >= hotAt ? "hot" : "";
  return html`<div class="bar">
    <span class="bar-label">${label}</span>
    <span class="bar-track" role="meter" aria-label=${label} aria-valuenow=${percent}
      aria-valuemin="0" aria-valuemax="100" aria-valuetext=${text}>
      <span class=${`bar-fill ${kind} ${heat}`} style=${{ width: `${percent}%` }}></span></span>
    <span class="bar-text">${text}</span>
  </div>`;
}

/** How long ago something was; it alone is drawn anew each second. */
export function Ago({ at }) {
  return ago(at, now.value);
}

/** Text to copy, with the button that does it. */
export function Copy({ text, label = "Copy" }) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      tell("Copied", { kind: "good" });
    } catch {
      tell("The browser lets nothing be copied here", { kind: "bad" });
    }
  };
  return html`<${Button} kind="small" onPress=${copy} title=${text}>${label}<//>`;
}

/** A command line for the terminal, to be copied. */
export function Command({ text }) {
  return html`<div class="command"><code>${text}</code><${Copy} text=${text} /></div>`;
}

/** What stands where there is nothing to show yet. */
export function Empty({ title, children }) {
  return html`<div class="empty"><h2>${title}</h2>${children}</div>`;
}

/**
 * A dialog above the page; Escape and a press beside it close it.
 *
 * `onClose` hears at once that Escape is pressed: that a dialog has gone, browsers tell
 * late, and by then the next key may have asked for another one.
 */
export function Dialog({ title, onClose, children }) {
  const element = useRef(null);
  useLayoutEffect(() => {
    const shown = element.current;
    shown.showModal();
    return () => shown.close();
  }, []);
  const press = (event) => {
    if (event.target === element.current) onClose();
  };
  const goes = () => element.current !== null && onClose(); // Not once it is no more.
  return html`<dialog ref=${element} aria-label=${title} onCancel=${onClose} onClose=${goes} onClick=${press}>
    <div class="dialog-body">
      <header><h2>${title}</h2>
        <button type="button" class="button quiet" aria-label="Close" onClick=${onClose}>✕</button>
      </header>
      ${children}
    </div>
  </dialog>`;
}

/** The messages that `tell` shows. */
export function Toasts() {
  return html`<div class="toasts" role="status" aria-live="polite">
    ${toasts.value.map(
      ({ id, text, kind, hint }) => html`<div key=${id} class=${`toast ${kind}`}>
        <div><p>${text}</p>${hint && html`<p class="hint">${hint}</p>`}</div>
        <button type="button" class="button quiet" aria-label="Dismiss" onClick=${() => untell(id)}>✕</button>
      </div>`,
    )}
  </div>`;
}
