import { del, get, post } from "../api.js";
import { clock, mebibytes, plural } from "../format.js";
import { LOST } from "../health.js";
import { useKeys } from "../keys.js";
import { html, useEffect, useRef, useState } from "../lib.js";
import { soon } from "../polling.js";
import { useReader } from "../reading.js";
import { go, href } from "../router.js";
import { may } from "../session.js";
import { mesh, nodes, tell } from "../store.js";
import { Ago, Bar, Button, Command, Empty, State } from "../ui.js";
import { Node } from "./node.js";
import { Orders, useOrders } from "./orders.js";
import { Role, Short } from "./role.js";

const ROWS = 40; //: drawn at first; scrolling draws more

/** All nodes, or one of them. */
export function Nodes({ parts, query }) {
  return parts[0] ? html`<${Node} name=${parts[0]} />` : html`<${All} query=${query} />`;
}

/** All nodes, with their load and their controls. */
function All({ query }) {
  const find = query.get("find") ?? "";
  const field = useRef(null);
  const [chosen, choose] = useState(null); //: its id: rows move when nodes join and leave
  const [drawn, setDrawn] = useState(ROWS);
  const shown = nodes.value.filter((node) => fits(node, find.toLowerCase()));
  const at = Math.max(0, shown.findIndex(({ id }) => id === chosen));
  const { order, dialog } = useOrders();
  const move = (by) => choose(shown[Math.max(0, Math.min(shown.length - 1, at + by))]?.id);
  useKeys({
    "/": () => field.current.focus(),
    j: () => move(1),
    k: () => move(-1),
    d: () => shown[at] && order(shown[at], shown[at].state === "draining" ? "resume" : "drain"),
    p: () => shown[at] && order(shown[at], shown[at].state === "paused" ? "unpause" : "pause"),
  });
  if (mesh.value === null || nodes.value.length === 0) return html`<p class="muted" role="status">Loading …</p>`;
  const standbys = new Map(mesh.value.standbys.map((standby) => [standby.id, standby]));
  const common = commonVersion(nodes.value);
  return html`
    <div class="head nodes-head">
      <h1>${plural(nodes.value.length, "node")}</h1>
      <span class="search"><input ref=${field} type="search" aria-label="Find a node" placeholder="Name, state or label" value=${find}
        onInput=${(event) => go(["nodes"], { find: event.currentTarget.value }, { replace: true })} /><kbd aria-hidden="true">/</kbd></span>
      ${may.manage.value && html`<span class="hint end"><kbd>j</kbd> <kbd>k</kbd> select, <kbd>d</kbd> drain, <kbd>p</kbd> pause</span>`}
    </div>
    ${may.admit.value && html`<${Waiting} /><${Visitors} />`}
    ${shown.length === 0 && html`<${Empty} title="No node matches"><p>No node has this name, state or label.</p><//>`}
    <ul class="node-rows">
      ${shown.slice(0, Math.max(drawn, at + ROWS)).map((node, i) => html`<${Row} key=${node.id} node=${node} standby=${standbys.get(node.id)}
        common=${common} isChosen=${i === at} isFollowed=${node.id === chosen} onChoose=${() => choose(node.id)} order=${order} />`)}
    </ul>
    ${dialog}
    ${shown.length > drawn && html`<${End} key=${drawn} onSeen=${() => setDrawn(drawn + ROWS)} />`}`;
}

/** The end of the rows; calls `onSeen` when it is almost in sight. */
function End({ onSeen }) {
  const element = useRef(null);
  useEffect(() => {
    const watch = new IntersectionObserver(([seen]) => seen.isIntersecting && onSeen(), { rootMargin: "600px" });
    watch.observe(element.current);
    return () => watch.disconnect();
  }, []);
  return html`<p ref=${element} class="muted">…</p>`;
}

/** `isFollowed` if the user chose it; the first one is chosen without that. */
function Row({ node, standby, common, isChosen, isFollowed, onChoose, order }) {
  const element = useRef(null);
  const { load, state } = node;
  const isLost = state === "lost";
  useEffect(() => {
    if (isFollowed) element.current.scrollIntoView({ block: "nearest" });
  }, [isFollowed]);
  return html`<li ref=${element} class=${`card node-row ${state} ${isChosen ? "chosen" : ""}`} aria-current=${isChosen} onFocusIn=${onChoose}>
    <div class="node-who">
      <h2><a href=${href(["nodes", node.name])}><bdi>${node.name}</bdi></a></h2>
      <p><${State} of=${state} /> <${Role} node=${node} standby=${standby?.state} />
        ${standby?.lag > 0 && html`<span class="tag">${plural(standby.lag, "entry", "entries")} behind</span>`}
        ${node.visitor && html`<span class="tag">visitor until ${clock(node.leaves_at)}</span> `}
        ${node.invited_by && html`<span class="tag">invited by <bdi>${node.invited_by}</bdi></span>`}
        ${node.short_of && html`<${Short} of=${node.short_of} />`}
        ${node.version !== common && html`<span class="tag warn">version ${node.version}; most have ${common}</span>`}
      </p>
      <p class="hint node-facts">
        <span>${node.addresses[0] ?? ""}</span>
        <span>${[node.os, node.arch].filter(Boolean).join(" ")}</span>
        <span>Octaskly ${node.version}</span>
        <span>${isLost ? "last seen" : "seen"} <${Ago} at=${node.last_seen} /></span>
      </p>
      <p class="node-labels">${Object.entries(node.labels).map(([key, value]) => html`<span class="tag">${key}=${value}</span> `)}</p>
    </div>
    <div class="node-load">
      <${Bar} label="Slots" kind="slots" part=${node.running / node.slots} text=${`${node.running} / ${node.slots}`} />
      ${isLost ? html`<p class="hint">${LOST}</p>` : html`
      <${Bar} label="CPU" part=${load.cpu_percent / 100} text=${`${Math.round(load.cpu_percent)} %`} />
      <${Bar} label="Memory" hotAt=${0.92} part=${load.memory_used_mb / node.memory_mb} text=${`${mebibytes(load.memory_used_mb)} of ${mebibytes(node.memory_mb)}`} />`}
    </div>
    ${may.manage.value && html`<${Orders} node=${node} order=${order} />`}
  </li>`;
}

/**
 * Machines that wait to join. This node dials them to find them, so it looks only on
 * request. A person compares the words.
 */
function Waiting() {
  const [found, setFound] = useState(null);
  const look = async () => {
    const { requests } = await get("/api/v1/requests");
    setFound(requests);
  };
  const answer = async ({ name, node_id: id, fingerprint }, verb) => {
    try {
      await post(`/api/v1/requests/${encodeURIComponent(id)}/${verb}`, { fingerprint });
      tell(verb === "approve" ? `${name} joins the mesh` : `${name} was refused`, { kind: "good" });
    } finally {
      setFound((all) => all.filter((one) => one.node_id !== id));
      soon(1000);
    }
  };
  return html`<section class="card waiting" aria-label="Machines that wait to join">
    <div class="waiting-ask">
      <p><strong>Add a machine:</strong> <span class="muted">type <code>octaskly join</code> in a terminal on it, then find it here.</span></p>
      <${Button} onPress=${look}>${found === null ? "Find machines" : "Look again"}<//>
    </div>
    ${found?.length === 0 && html`<p class="muted">No machine on this network is running <code>octaskly join</code>.</p>`}
    ${found?.map((request) => html`<div key=${request.node_id} class="request">
      <div><h2>${request.name}</h2><p class="hint">${request.address}</p></div>
      <p class="words" aria-label="Its words">${request.fingerprint}</p>
      <div class="request-answer">
        <p>Does <strong>${request.name}</strong> show the same three words?</p>
        <div class="row">
          <${Button} kind="primary" onPress=${() => answer(request, "approve")}>Yes, let it join<//>
          <${Button} kind="danger" onPress=${() => answer(request, "refuse")}>No, they differ<//>
        </div>
      </div>
    </div>`)}
    ${nodes.value.length === 1 && found === null && html`<${Command} text="octaskly invite" />`}
  </section>`;
}

/** Invites for visitors, each of which admits one machine for some hours. */
function Visitors() {
  const [invite, setInvite] = useState(null);
  const { found, reader } = useReader((signal) => get("/api/v1/invites", {}, { quiet: true, signal }), []);
  const waiting = found?.invites.filter(({ state }) => state === "open") ?? [];
  const ask = async () => {
    setInvite(await post("/api/v1/invites", { ttl_s: 600, visitor: {} }));
    await reader.current.read();
  };
  const withdraw = async (id) => {
    await del(`/api/v1/invites/${id}`);
    if (invite?.id === id) setInvite(null);
    await reader.current.read();
  };
  const come = nodes.value.filter((node) => node.visitor).length;
  useEffect(() => {
    reader.current.read(); // Who comes has used an invite.
  }, [come]);
  return html`<section class="card waiting" aria-label="Visitors">
    <div class="waiting-ask">
      <p><strong>Borrow a machine:</strong> <span class="muted">a visitor runs only tasks that allow it, for 8 hours at most, and can give no commands.</span></p>
      <${Button} onPress=${ask}>${invite === null ? "Invite a visitor" : "Invite another"}<//>
    </div>
    ${invite && html`<${Command} text=${`octaskly join --visitor ${invite.url ?? invite.code}`} />
      ${invite.qr.length > 0 && html`<${QrCode} rows=${invite.qr} />`}`}
    ${waiting.length > 0 && html`<ul aria-label="Open invites">${waiting.map(({ id, expires_at: end }) => html`<li key=${id} class="row">
      Invite ${id}, until ${clock(end)}
      <${Button} onPress=${() => withdraw(id)} aria-label=${`Withdraw invite ${id}`}>Withdraw<//></li>`)}</ul>`}
  </section>`;
}

/** A QR code; 1 is dark. It is white also in the dark theme, as cameras need it. */
function QrCode({ rows }) {
  const size = rows.length + 4;
  const dark = rows.flatMap((row, y) => [...row].flatMap((one, x) => (one === "1" ? [`M${x + 2} ${y + 2}h1v1h-1z`] : [])));
  return html`<svg class="qr" role="img" aria-label="The invite as a QR code" viewBox=${`0 0 ${size} ${size}`} shape-rendering="crispEdges">
    <rect width=${size} height=${size} fill="#fff" /><path d=${dark.join("")} fill="#000" /></svg>`;
}

function fits(node, text) {
  if (text === "") return true;
  const labels = Object.entries(node.labels).map(([key, value]) => `${key}=${value}`);
  return [node.name, node.id, node.state, node.visitor ? "visitor" : node.role, node.version, ...labels].some((one) => one.toLowerCase().includes(text));
}

function commonVersion(all) {
  const counts = new Map();
  for (const { version } of all) counts.set(version, (counts.get(version) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0];
}
