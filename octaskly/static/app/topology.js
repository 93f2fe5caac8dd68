/** The mesh as a picture: the dispatcher in the middle, the others around it. */

import { plural } from "./format.js";
import { html } from "./lib.js";
import { go } from "./router.js";

const SIZE = 320;
const LABELS_MAX = 14; //: of more nodes the names would lie on each other
const ROOM = 8; //: a smaller circle is filled by how busy it is; a larger one has a ring
const RING = [0.78, 0.56]; //: of half the size: outer and inner ring

/** Roles differ in shape as well as in colour. */
export function Topology({ nodes, standbys }) {
  const centre = nodes.find(({ role }) => role === "dispatcher");
  const others = nodes.filter((node) => node !== centre);
  const places = others.map((node, i) => ({ node, ...placeOf(i, others.length) }));
  const level = new Map(standbys.map((standby) => [standby.id, standby.state]));
  const hasLabels = others.length <= LABELS_MAX;
  const radius = hasLabels ? 13 : Math.max(3.5, 11 - others.length / 25);
  const told = centre
    ? `${centre.name} is the dispatcher; ${plural(standbys.length, "standby", "standbys")}; ${plural(nodes.length, "node")}`
    : `No dispatcher; ${plural(nodes.length, "node")}`;
  return html`<svg class=${`topology ${hasLabels ? "" : "dense"}`} viewBox=${boxOf(others.length)} role="group" aria-label=${told}>
    ${centre && places.map(({ node, x, y }) => html`<line key=${node.id} class=${`edge ${level.get(node.id) ?? ""} ${node.state}`}
      x1="0" y1="0" x2=${x} y2=${y} />`)}
    ${places.map(({ node, x, y }) => html`<${Dot} key=${node.id} node=${node} x=${x} y=${y} r=${radius}
      standby=${level.get(node.id)} hasLabel=${hasLabels} />`)}
    ${centre && html`<${Dot} node=${centre} x=${0} y=${0} r=${20} hasLabel=${true} />`}
  </svg>`;
}

function Dot({ node, x, y, r, standby, hasLabel }) {
  const part = node.slots > 0 ? Math.min(1, node.running / node.slots) : 0;
  const kind = node.role === "dispatcher" ? "dispatcher" : standby ? `standby ${standby}` : "worker";
  const around = 2 * Math.PI * (r + 3);
  // For the mouse only: the list of nodes below has the same links.
  return html`<g class=${`dot ${kind} ${node.state}`} transform=${`translate(${x} ${y})`} onClick=${() => go(["nodes", node.name])}>
    <title>${`${node.name}: ${node.role}, ${node.state}, ${node.running} of ${node.slots} slots`}</title>
    ${r >= ROOM && html`<circle class="busy" r=${r + 3} stroke-dasharray=${`${around * part} ${around}`} transform="rotate(-90)" />`}
    <circle class="body" r=${r} />
    ${r < ROOM && html`<circle class="load" r=${r} opacity=${part} />`}
    ${(kind === "dispatcher" || (standby && r > ROOM)) && html`<${Mark} kind=${kind.split(" ")[0]} />`}
    ${hasLabel && html`<text y=${r + 17} text-anchor="middle">${shortened(node.name)}</text>`}
  </g>`;
}

const MARKS = { dispatcher: "M-8 5V-4l4 4 4-7 4 7 4-4v9z", standby: "M-5 -1h10M-5 3h10" };

/** A crown for the dispatcher, two bars for a standby. */
function Mark({ kind }) {
  return html`<path class="mark" d=${MARKS[kind]} />`;
}

/** A small node for the legend; `slots` is the ring of used slots. */
export function Sign({ kind }) {
  return html`<svg class=${`dot ${kind}`} viewBox="-16 -16 32 32" width="18" height="18" aria-hidden="true">
    ${kind === "slots" ? html`<circle class="busy" r="12" stroke-dasharray="56 76" transform="rotate(-90)" />` : html`<circle class="body" r="14" />`}
    ${MARKS[kind] && html`<${Mark} kind=${kind} />`}</svg>`;
}

function boxOf(n) {
  if (n <= 2) return `${-SIZE / 2} -40 ${SIZE} 185`;
  return `${-SIZE / 2} ${-SIZE / 2} ${SIZE} ${SIZE}`;
}

function placeOf(i, n) {
  // Few on one ring, many on two, so that they keep apart.
  const inTwo = n > 60;
  const ring = inTwo && i % 2 ? RING[1] : RING[0];
  // One or two hang below the dispatcher.
  const angle = n <= 2 ? Math.PI / 2 - (n - 1) * (i - 0.5) * 1.3 : (i / n) * 2 * Math.PI - Math.PI / 2;
  const half = (SIZE / 2) * ring;
  return { x: Math.round(Math.cos(angle) * half * 10) / 10, y: Math.round(Math.sin(angle) * half * 10) / 10 };
}

const shortened = (name) => (name.length > 16 ? `${name.slice(0, 15)}…` : name);
