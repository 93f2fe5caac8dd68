import { html } from "../lib.js";
import { Empty } from "../ui.js";

/** @param {{parts: string[], query: URLSearchParams}} props */
export function Submit() {
  return html`<${Empty} title="Submit"><p>This view is being built.</p><//>`;
}
