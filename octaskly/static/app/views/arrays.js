import { html } from "../lib.js";
import { Empty } from "../ui.js";

/** @param {{parts: string[], query: URLSearchParams}} props */
export function Arrays() {
  return html`<${Empty} title="Arrays"><p>This view is being built.</p><//>`;
}
