import { html } from "../lib.js";
import { Empty } from "../ui.js";

/** @param {{parts: string[], query: URLSearchParams}} props */
export function Stream() {
  return html`<${Empty} title="Stream"><p>This view is being built.</p><//>`;
}
