/** Small parts that all views share. */

import { ago } from "./format.js";
import { html, useLayoutEffect, useRef, useState } from "./lib.js";
import { now, tell, toasts, untell } from "./store.js";

const ICON = new URL("../icon.svg", import.meta.url).pathname;

/** The icon of Octaskly, without a text: its name is beside it. */
export function Icon({ px }) {
  return html`<img src=${ICON} alt="" width=${px} height=${px} />`;
}

/** The state of a task or node: a word with a dot. */
export function State({ of }) {
  return html`<span class=${`state state-${of}`}>${of}</span>`;
}

/**
 * A button that is busy until its action is done.
 * @param {{onPress: () => unknown, kind?: "plain"|"primary"|"danger"|"quiet"|"small"}} props
 */
export function Button({ onPress, kind = "plain", disabled = false, children, ...rest }) {
  const [isBusy, setBusy] = useState(false);
  const press = async () => {
    setBusy(true);
    try {
      await onPress();
    } catch (problem) {
      // A toast has shown the errors of requests.
      if (problem.status === undefined && problem.name !== "AbortError") throw problem;
    } finally {
      setBusy(false);
    }
  };
  return html`<button type="button" class=${`button ${kind}`} aria-busy=${isBusy}
    disabled=${disabled || isBusy} onClick=${press} ...${rest}>${children}</button>`;
}

/** A used share, 0 to 1, which is red from `hotAt` on; `text` says the same in words. */
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

/** The age of something; only this is drawn again each second. */
export function Ago({ at }) {
  return ago(at, now.value);
}

/** A button that copies a text. */
export function Copy({ text, label = "Copy" }) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      tell("Copied", { kind: "good" });
    } catch {
      tell("The browser does not allow copying here", { kind: "bad", hint: "Select the text and press Ctrl+C." });
    }
  };
  return html`<${Button} kind="small" onPress=${copy} title=${text}>${label}<//>`;
}

/** A command for the terminal, with a button that copies it. */
export function Command({ text }) {
  return html`<div class="command"><code>${text}</code><${Copy} text=${text} /></div>`;
}

/** Shown when there is nothing to show yet. */
export function Empty({ title, children }) {
  return html`<div class="empty"><h2>${title}</h2>${children}</div>`;
}

/**
 * A dialog above the page; Escape and a click beside it close it.
 *
 * `onClose` is called at once when Escape is pressed. Browsers report the close late, and
 * by then the next key may have opened another dialog.
 */
export function Dialog({ title, onClose, children }) {
  const element = useRef(null);
  const isBeside = useRef(false); //: the button of the mouse went down there
  useLayoutEffect(() => {
    const shown = element.current;
    shown.showModal();
    return () => shown.close();
  }, []);
  const press = (event) => {
    // Whoever selects text may let go of the button beside the dialog.
    if (event.target === element.current && isBeside.current) onClose();
  };
  const begin = (event) => (isBeside.current = event.target === element.current);
  const goes = () => element.current !== null && onClose(); // Not after it was removed.
  return html`<dialog ref=${element} aria-label=${title} onCancel=${onClose} onClose=${goes} onPointerDown=${begin} onClick=${press}>
    <div class="dialog-body">
      <header><h2>${title}</h2>
        <button type="button" class="button quiet" aria-label="Close" onClick=${onClose}>✕</button>
      </header>
      ${children}
    </div>
    <${Toasts} />
  </dialog>`; // The page with its own messages is inert and dark meanwhile.
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
