import { html } from "../lib.js";

/** Dispatcher and standbys are marked; most nodes are neither. */
export function Role({ node, standby }) {
  if (node.role === "dispatcher") return html`<span class="tag dispatcher">dispatcher</span>`;
  if (!standby) return null;
  return html`<span class="tag standby">standby${standby === "level" ? "" : ", joining"}</span>`;
}
