import { html } from "../lib.js";
import { Empty } from "../ui.js";

/** @param {{parts: string[], query: URLSearchParams}} props */
export function Nodes() {
  return html`<${Empty} title="Nodes"><p>This view is being built.</p><//>`;
}
