import { html } from "../lib.js";

/** The tag of a dispatcher or standby; most nodes are neither. */
export function Role({ node, standby }) {
  if (node.role === "dispatcher") return html`<span class="tag dispatcher">dispatcher</span>`;
  if (!standby) return null;
  return html`<span class="tag standby">standby${standby === "level" ? "" : ", joining"}</span>`;
}

const SHORTAGES = { disk: "disk almost full", memory: "out of memory", launchers: "cannot start tasks" };

/** What a node is short of. */
export const Short = ({ of }) => html`<span class="tag warn">${SHORTAGES[of] ?? `short of ${of}`}</span>`;
