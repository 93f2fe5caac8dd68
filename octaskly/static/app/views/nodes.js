import { get, post } from "../api.js";
import { mebibytes, plural } from "../format.js";
import { useKeys } from "../keys.js";
import { html, useEffect, useRef, useState } from "../lib.js";
import { soon } from "../polling.js";
import { go, href } from "../router.js";
import { mesh, nodes, tell } from "../store.js";
import { Ago, Bar, Button, Command, Dialog, Empty, State } from "../ui.js";
import { Node } from "./node.js";
import { Role } from "./role.js";

const ROWS = 40; //: drawn at first, and more of them as one scrolls

/** All nodes, or one of them. */
export function Nodes({ parts, query }) {
  return parts[0] ? html`<${Node} name=${parts[0]} />` : html`<${All} query=${query} />`;
}

/** All nodes, what each does, and what one may tell it. */
function All({ query }) {
  const find = query.get("find") ?? "";
  const field = useRef(null);
  const [chosen, choose] = useState(0);
  const [drawn, setDrawn] = useState(ROWS);
  const [asked, ask] = useState(null);
  const shown = nodes.value.filter((node) => fits(node, find.toLowerCase()));
  const at = Math.min(chosen, shown.length - 1);
  const order = (node, verb) => {
    if (node.state === "lost") return undefined;
    return SURE[verb] ? ask({ id: node.id, verb }) : steer(node, verb);
  };
  const move = (by) => choose(Math.max(0, Math.min(shown.length - 1, at + by)));
  useKeys({
    "/": () => field.current.focus(),
    j: () => move(1),
    k: () => move(-1),
    d: () => shown[at] && order(shown[at], shown[at].state === "draining" ? "resume" : "drain"),
    p: () => shown[at] && order(shown[at], shown[at].state === "paused" ? "unpause" : "pause"),
  });
  if (mesh.value === null || nodes.value.length === 0) return html`<p class="muted" role="status">Asking the mesh…</p>`;
  const level = new Map(mesh.value.standbys.map((standby) => [standby.id, standby]));
  const common = commonVersion(nodes.value);
  return html`
    <div class="head nodes-head">
      <h1>${plural(nodes.value.length, "node")}</h1>
      <span class="search"><input ref=${field} type="search" aria-label="Find a node" placeholder="Find by name, state, label" value=${find}
        onInput=${(event) => go(["nodes"], { find: event.currentTarget.value }, { replace: true })} /><kbd aria-hidden="true">/</kbd></span>
      <span class="hint end"><kbd>j</kbd> <kbd>k</kbd> choose, <kbd>d</kbd> drain, <kbd>p</kbd> pause</span>
    </div>
    <${Waiting} />
    ${shown.length === 0 && html`<${Empty} title="No node fits"><p>None has this name, state or label.</p><//>`}
    <ul class="node-rows">
      ${shown.slice(0, Math.max(drawn, at + ROWS)).map((node, i) => html`<${Row} key=${node.id} node=${node} standby=${level.get(node.id)}
        common=${common} isChosen=${i === at} onChoose=${() => choose(i)} order=${order} />`)}
    </ul>
    ${asked && html`<${Sure} node=${nodes.value.find(({ id }) => id === asked.id)} verb=${asked.verb} onClose=${() => ask(null)} />`}
    ${shown.length > drawn && html`<${End} key=${drawn} onSeen=${() => setDrawn(drawn + ROWS)} />`}`;
}

/** Stands below the rows, and calls `onSeen` when somebody scrolls near to it. */
function End({ onSeen }) {
  const element = useRef(null);
  useEffect(() => {
    const watch = new IntersectionObserver(([seen]) => seen.isIntersecting && onSeen(), { rootMargin: "600px" });
    watch.observe(element.current);
    return () => watch.disconnect();
  }, []);
  return html`<p ref=${element} class="muted">…</p>`;
}

/** What is asked before a node takes no more work: a key is soon pressed on the wrong one. */
const SURE = {
  drain: { title: "Drain", what: "It ends what runs and takes no more, until it is resumed." },
  pause: { title: "Pause", what: "What runs there is frozen, and it takes no more, until it is unpaused." },
};

function Sure({ node, verb, onClose }) {
  if (node === undefined) return null; // It left meanwhile.
  const { title, what } = SURE[verb];
  const go = async () => {
    onClose();
    await steer(node, verb);
  };
  return html`<${Dialog} title=${`${title} ${node.name}?`} onClose=${onClose}>
    <p>${what}</p><p class="muted">${plural(node.running, "task")} ${node.running === 1 ? "runs" : "run"} there now.</p>
    <div class="row dialog-end"><${Button} onPress=${onClose}>Leave it<//>
      <${Button} kind="primary" autofocus onPress=${go}>${`${title} ${node.name}`}<//></div>
  <//>`;
}

function Row({ node, standby, common, isChosen, onChoose, order }) {
  const element = useRef(null);
  const { load, state } = node;
  const isLost = state === "lost";
  useEffect(() => {
    if (isChosen) element.current.scrollIntoView({ block: "nearest" });
  }, [isChosen]);
  return html`<li ref=${element} class=${`card node-row ${state} ${isChosen ? "chosen" : ""}`} aria-current=${isChosen} onFocusIn=${onChoose}>
    <div class="node-who">
      <h2><a href=${href(["nodes", node.name])}>${node.name}</a></h2>
      <p><${State} of=${state} /> <${Role} node=${node} standby=${standby?.state} />
        ${standby?.lag > 0 && html`<span class="tag">${plural(standby.lag, "entry", "entries")} behind</span>`}
        ${node.short_of && html`<span class="tag warn">short of ${node.short_of}</span>`}
        ${node.version !== common && html`<span class="tag warn">version ${node.version}, most have ${common}</span>`}
      </p>
      <p class="hint node-facts">
        <span>${node.addresses[0]}</span>
        <span>${[node.os, node.arch].filter(Boolean).join(" ")}</span>
        <span>Octaskly ${node.version}</span>
        <span>${isLost ? "lost" : "heard"} <${Ago} at=${node.last_seen} /></span>
      </p>
      <p class="node-labels">${Object.entries(node.labels).map(([key, value]) => html`<span class="tag">${key}=${value}</span> `)}</p>
    </div>
    <div class="node-load">
      <${Bar} label="Slots" kind="slots" part=${node.running / node.slots} text=${`${node.running} / ${node.slots}`} />
      ${isLost ? html`<p class="hint">What ran there runs again elsewhere.</p>` : html`
      <${Bar} label="CPU" part=${load.cpu_percent / 100} text=${`${Math.round(load.cpu_percent)} %`} />
      <${Bar} label="Memory" hotAt=${0.92} part=${load.memory_used_mb / node.memory_mb} text=${`${mebibytes(load.memory_used_mb)} of ${mebibytes(node.memory_mb)}`} />`}
    </div>
    <div class="node-orders">
      ${state === "draining"
        ? html`<${Button} onPress=${() => order(node, "resume")} aria-label=${`Resume ${node.name}`}>Resume<//>`
        : html`<${Button} disabled=${isLost} onPress=${() => order(node, "drain")} aria-label=${`Drain ${node.name}`}
            title="It ends what runs and takes no more">Drain<//>`}
      ${state === "paused"
        ? html`<${Button} onPress=${() => order(node, "unpause")} aria-label=${`Unpause ${node.name}`}>Unpause<//>`
        : html`<${Button} disabled=${isLost} onPress=${() => order(node, "pause")} aria-label=${`Pause ${node.name}`}
            title="What runs there is frozen until it is unpaused">Pause<//>`}
    </div>
  </li>`;
}

const SAID = { drain: "is draining", resume: "takes work again", pause: "is paused", unpause: "goes on" };

async function steer(node, order) {
  const after = await post(`/api/v1/nodes/${encodeURIComponent(node.id)}/${order}`);
  nodes.value = nodes.value.map((one) => (one.id === after.id ? { ...one, state: after.state, running: after.running } : one));
  tell(`${node.name} ${SAID[order]}`, { kind: "good" });
  soon();
}

/**
 * Machines that want in. Looking makes this node dial them, so it looks only when
 * somebody asks for it; and the words are compared by people.
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
      tell(verb === "approve" ? `${name} is let in` : `${name} was sent away`, { kind: "good" });
    } finally {
      setFound((all) => all.filter((one) => one.node_id !== id));
      soon(1000);
    }
  };
  return html`<section class="card waiting" aria-label="Machines that want in">
    <div class="waiting-ask">
      <p><strong>Another machine?</strong> <span class="muted">Run <code>octaskly join</code> on it, then look for it here.</span></p>
      <${Button} onPress=${look}>${found === null ? "Look for machines" : "Look again"}<//>
    </div>
    ${found?.length === 0 && html`<p class="muted">No machine on this network waits in <code>octaskly join</code>.</p>`}
    ${found?.map((request) => html`<div key=${request.node_id} class="request">
      <div><h2>${request.name}</h2><p class="hint">${request.address}</p></div>
      <p class="words" aria-label="Its words">${request.fingerprint}</p>
      <div class="request-answer">
        <p>Does <strong>${request.name}</strong> show the same three words?</p>
        <div class="row">
          <${Button} kind="primary" onPress=${() => answer(request, "approve")}>Yes, let it in<//>
          <${Button} kind="danger" onPress=${() => answer(request, "refuse")}>No, they differ<//>
        </div>
      </div>
    </div>`)}
    ${nodes.value.length === 1 && found === null && html`<${Command} text="octaskly invite" />`}
  </section>`;
}

function fits(node, text) {
  if (text === "") return true;
  const labels = Object.entries(node.labels).map(([key, value]) => `${key}=${value}`);
  return [node.name, node.id, node.state, node.role, node.version, ...labels].some((one) => one.toLowerCase().includes(text));
}

function commonVersion(all) {
  const counts = new Map();
  for (const { version } of all) counts.set(version, (counts.get(version) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0];
}
