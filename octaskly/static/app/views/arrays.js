import { del, get, mayPass, post } from "../api.js";
import { ago, commandOf, count, plural, visible } from "../format.js";
import { html, useEffect, useState } from "../lib.js";
import { listen } from "../live.js";
import { useReader } from "../reading.js";
import { go, href } from "../router.js";
import { may } from "../session.js";
import { now, tell } from "../store.js";
import { Button, Command, Empty, State } from "../ui.js";
import { Progress } from "./members.js";

const REFRESH_MS = 1000;
const PAGE = 25;

/** Arrays and their progress, latest first. */
export function Arrays() {
  const [limit, setLimit] = useState(PAGE);
  const { found, problem, reload } = useArrays(limit);
  if (found === null) return html`<p class="muted" role="status">${problem ? `${problem.error}${mayPass(problem) ? "; retrying …" : ""}` : "Loading …"}</p>`;
  if (found.total === 0) {
    return html`<${Empty} title="No arrays yet"><p>An array runs one command for each number in a range, or for each item in a list.</p>
      <${Command} text="octaskly array 1-100 -- echo {}" />
      ${may.submit.value && html`<p>Or <a href=${href(["submit"], { array: "range" })}>submit one here</a>.</p>`}<//>`;
  }
  return html`<div class="head"><h1>Arrays</h1><span class="muted" role="status">${count(found.total)}</span>
      ${may.submit.value && html`<a class="button primary end" href=${href(["submit"], { array: "range" })}>Submit an array</a>`}</div>
    <ul class="arrays">${found.tasks.map((task) => html`<${ArrayCard} key=${task.id} task=${task} reload=${reload} />`)}</ul>
    ${found.total > found.tasks.length && html`<p class="more"><button type="button" class="button" disabled=${limit >= 1000}
      onClick=${() => setLimit(Math.min(1000, limit * 2))}>Show more</button></p>`}`;
}

/** The latest arrays, read again while their members begin and end. */
function useArrays(limit) {
  const { found, problem, reader } = useReader(
    (signal) => get("/api/v1/arrays", { newest: "true", limit }, { quiet: true, signal }), [limit]);
  useEffect(() => {
    const soon = () => reader.current.soon(REFRESH_MS);
    // Events of other tasks have neither the field nor the id of a member.
    const ends = [listen("task", (event) => (event.array || /\.\d+$/.test(event.id)) && soon()), listen("reset", soon)];
    reader.current.read();
    return () => ends.forEach((end) => end());
  }, [limit]);
  return { found, problem, reload: () => reader.current.read() };
}

function ArrayCard({ task, reload }) {
  const { array } = task;
  const path = `/api/v1/arrays/${encodeURIComponent(task.id)}`;
  const title = task.name ? visible(task.name) : commandOf(task);
  const cancel = async () => {
    await del(path);
    tell(`${plural(array.queued, "member")} of ${title} cancelled`, { kind: "good" });
    await reload();
  };
  const retry = async () => {
    const again = await post(`${path}/retry`);
    tell(`The members that did not succeed were submitted again as ${again.id}`, { kind: "good" });
    go(["tasks", again.id]);
  };
  const isOver = ["completed", "failed", "cancelled"].includes(task.status);
  return html`<li class="card array"><div class="array-head">
      <h2><a href=${href(["tasks", task.id])}><bdi>${title}</bdi></a></h2><${State} of=${task.status} />
      <span class="muted">${array.range ?? `${count(array.total)} items`} · ${ago(task.created_at, now.value)}</span>
      ${may.submit.value && html`<div class="end row">
        ${!isOver && array.queued > 0 && html`<${Button} kind="danger" onPress=${cancel} aria-label=${`Cancel queued members of ${title}`}>Cancel queued<//>`}
        ${isOver && array.completed < array.total && html`<${Button} onPress=${retry} aria-label=${`Retry ${array.failed > 0 ? "failed" : "cancelled"} members of ${title}`}>Retry ${array.failed > 0 ? "failed" : "cancelled"}<//>`}</div>`}</div>
    ${task.name && html`<p class="array-command"><code>${commandOf(task)}</code></p>`}
    <${Progress} array=${array} id=${task.id} isSmall />
  </li>`;
}
