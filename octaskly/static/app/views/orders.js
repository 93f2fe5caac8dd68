/** What a node can be told: to drain or pause, and to end both; of a visitor, that its visit ends. */

import { post } from "../api.js";
import { count } from "../format.js";
import { html, useState } from "../lib.js";
import { nodeCame, nodeLeft } from "../polling.js";
import { may } from "../session.js";
import { nodes, tell } from "../store.js";
import { Button, Dialog } from "../ui.js";

const END_VISIT = "end-visit";

/** These ask first: a key is easily pressed on the wrong node. */
const SURE = {
  drain: { title: "Drain", what: "Running tasks finish. No new ones start there until you resume the node." },
  pause: { title: "Pause", what: "Running tasks freeze. No new ones start there until you resume the node." },
  [END_VISIT]: { title: "End the visit of", what: "It is refused at once, and needs a new invite to come back. What it runs runs again elsewhere. Other visitors stay, and tokens stay valid." },
};
const DONE = { [END_VISIT]: "is no visitor any more", drain: "is draining", pause: "is paused", resume: "accepts tasks again", unpause: "accepts tasks again" };
const END = { draining: "resume", paused: "unpause" };

/** Returns what gives a node an order, and the dialog that may be open. */
export function useOrders() {
  const [asked, ask] = useState(null);
  const order = (node, verb) => {
    const isFitting = verb === END_VISIT ? node.visitor : !node.visitor && node.state !== "lost";
    if (!isFitting || !may.manage.value) return undefined;
    return SURE[verb] ? ask({ id: node.id, verb }) : steer(node, verb);
  };
  const node = asked && nodes.value.find(({ id }) => id === asked.id); // It may have left.
  const dialog = node && html`<${Sure} node=${node} verb=${asked.verb} onClose=${() => ask(null)} />`;
  return { order, dialog };
}

/** The buttons of a node; a visitor takes no orders, but its visit can be ended. */
export function Orders({ node, order }) {
  const { name, state } = node;
  if (node.visitor) {
    return html`<div class="node-orders"><${Button} onPress=${() => order(node, END_VISIT)} aria-label=${`End the visit of ${name}`}
      title="Refuse this visitor from now on">End visit<//></div>`;
  }
  const isLost = state === "lost";
  const end = END[state];
  return html`<div class="node-orders">
    ${end && html`<${Button} onPress=${() => order(node, end)} aria-label=${`Resume ${name}`} title="Accept tasks again">Resume<//>`}
    ${state !== "draining" && html`<${Button} disabled=${isLost} onPress=${() => order(node, "drain")} aria-label=${`Drain ${name}`}
      title="Finish running tasks, and start no new ones">Drain<//>`}
    ${state !== "paused" && html`<${Button} disabled=${isLost} onPress=${() => order(node, "pause")} aria-label=${`Pause ${name}`}
      title="Freeze running tasks, and start no new ones">Pause<//>`}
  </div>`;
}

function Sure({ node, verb, onClose }) {
  const { title, what } = SURE[verb];
  const running = node.running === 0 ? "No task runs" : node.running === 1 ? "1 task runs" : `${count(node.running)} tasks run`;
  const go = async () => {
    onClose();
    await steer(node, verb);
  };
  return html`<${Dialog} title=${`${title} ${node.name}?`} onClose=${onClose}>
    <p>${what}</p><p class="muted">${running} there now.</p>
    <div class="row dialog-end"><${Button} onPress=${onClose}>Cancel<//>
      <${Button} kind="primary" autofocus onPress=${go}>${`${title} ${node.name}`}<//></div>
  <//>`;
}

async function steer(node, verb) {
  const after = await post(`/api/v1/nodes/${encodeURIComponent(node.id)}/${verb}`);
  if (verb === END_VISIT) nodeLeft(node.id);
  else nodeCame(after);
  tell(`${node.name} ${DONE[verb]}`, { kind: "good" });
}
