/**
 * The dashboard: shows the view of the address, once `start.js` has signed in.
 *
 * For who writes a view: `views/NAME.js` exports one component that gets
 * `{ parts, query }` of the address (`#/tasks/ID?x=1`: parts `["ID"]`). It takes
 *
 *   lib.js     html, hooks, signals: the one door to the vendored modules
 *   store.js   signals that all share: nodes, stats, mesh, history, now; tell(text)
 *   api.js     get, post, del, send: they show what fails as a toast, and throw it
 *   live.js    listen(type, hear) inside useEffect: task, node and reset events
 *   router.js  place, href(parts, query), go(parts, query)
 *   ui.js      State, Button, Bar, Copy, Command, Empty, Dialog
 *   format.js  duration, elapsed, ago, clock, timeOfDay, count, plural, bytes, rate, byName
 *   keys.js    useKeys({ j: next, "/": focus })
 *
 * A signal's `.value` read in a component renders it anew when it changes. Styles stand
 * in `style.css` (tokens, shared parts) and `views/NAME.css` for one view alone, named in
 * index.html. What comes from the mesh is put into `${}` only, so it stays text; the
 * page's policy forbids inline scripts, inline style attributes and markup from text
 * (`style=${{ width }}` with an object is fine).
 */

import "./start.js";
import { html, render, useEffect, useState } from "./lib.js";
import { useKeys } from "./keys.js";
import { go, href, place } from "./router.js";
import { end, session } from "./session.js";
import { banner, dispatcher, link } from "./store.js";
import { Dialog, Icon, Toasts } from "./ui.js";
import { Arrays } from "./views/arrays.js";
import { Nodes } from "./views/nodes.js";
import { Overview } from "./views/overview.js";
import { SignIn } from "./views/signin.js";
import { Stream } from "./views/stream.js";
import { Submit } from "./views/submit.js";
import { Tasks } from "./views/tasks.js";

const TABS = [
  { name: "overview", title: "Overview", key: "o", view: Overview },
  { name: "tasks", title: "Tasks", key: "t", view: Tasks },
  { name: "stream", title: "Stream", key: "s", view: Stream },
  { name: "arrays", title: "Arrays", key: "a", view: Arrays },
  { name: "nodes", title: "Nodes", key: "n", view: Nodes },
  { name: "submit", title: "Submit", key: "c", view: Submit },
];

const HELP = [
  ...TABS.map(({ title, key }) => [`g ${key}`, title]),
  ["/", "Search or filter"],
  ["j  k", "Next, previous"],
  ["Enter", "Open"],
  ["?", "This help"],
  ["Esc", "Close, or leave a field"],
];

const LINKS = {
  connecting: "Connecting",
  live: "Connected",
  waiting: "Reconnecting",
};

function App() {
  if (session.value === null) return html`<${SignIn} /><${Toasts} />`;
  return html`<${Shell} />`;
}

function Shell() {
  const [isHelp, setHelp] = useState(false);
  const { tab, parts, query } = place.value;
  const shown = TABS.find(({ name }) => name === tab) ?? TABS[0];
  useKeys({
    "?": () => setHelp(true),
    ...Object.fromEntries(TABS.map(({ name, key }) => [`g ${key}`, () => go([name])])),
  });
  useEffect(() => {
    document.title = `${shown.title} · Octaskly`;
  }, [shown]);
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to content</a>
    <header class="top">
      <a class="brand" href=${href(["overview"])}><${Icon} px="24" />Octaskly</a>
      <nav aria-label="Views">
        ${TABS.map(({ name, title, key }) => html`<a href=${href([name])}
          aria-current=${name === shown.name ? "page" : undefined} title=${`${title} (g ${key})`}>${title}</a>`)}
      </nav>
      <div class="top-end">
        <${Link} />
        <button type="button" class="button quiet" aria-label="Keyboard help" onClick=${() => setHelp(true)}>?</button>
        <button type="button" class="button quiet" onClick=${() => end()}>Sign out</button>
      </div>
    </header>
    <${Banner} />
    <main id="main" tabindex="-1"><${shown.view} key=${shown.name} parts=${parts} query=${query} /></main>
    <${Toasts} />
    ${isHelp && html`<${Dialog} title="Keyboard" onClose=${() => setHelp(false)}>
      <dl class="keys">${HELP.map(([keys, what]) => html`<dt>${keys.split(/ +/).map((key) => html`<kbd>${key}</kbd>`)}</dt><dd>${what}</dd>`)}</dl>
    <//>`}`;
}

function Link() {
  const name = dispatcher.value?.name;
  const title = name ? `Dispatcher: ${name}` : "No dispatcher is known";
  return html`<span class=${`link link-${link.value}`} title=${title}>${LINKS[link.value]}</span>`;
}

function Banner() {
  const said = banner.value
    ?? (link.value === "waiting" ? { kind: "waiting", text: "Looking for the mesh; what runs there goes on." } : null);
  return html`<div role="status">${said && html`<p class=${`banner ${said.kind}`}>${said.text}</p>`}</div>`;
}

function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

render(html`<${App} />`, document.getElementById("app"));
