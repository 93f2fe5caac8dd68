import { html } from "../lib.js";
import { Empty } from "../ui.js";

/** @param {{parts: string[], query: URLSearchParams}} props */
export function Overview() {
  return html`<${Empty} title="Overview"><p>This view is being built.</p><//>`;
}
