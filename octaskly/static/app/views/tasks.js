import { html } from "../lib.js";
import { Empty } from "../ui.js";

/** @param {{parts: string[], query: URLSearchParams}} props */
export function Tasks() {
  return html`<${Empty} title="Tasks"><p>This view is being built.</p><//>`;
}
