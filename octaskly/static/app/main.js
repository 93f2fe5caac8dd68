/**
 * The dashboard: shows the view of the address after `start.js` has signed in.
 *
 * To write a view: `views/NAME.js` exports one component that gets
 * `{ parts, query }` of the address (`#/tasks/ID?x=1`: parts `["ID"]`). It uses
 *
 *   lib.js     html, hooks, signals: the only import of vendored modules
 *   store.js   shared signals: nodes, stats, mesh, history, now; tell(text)
 *   session.js may.submit, may.manage, may.admit: what the token permits
 *   api.js     get, post, del, send: they throw errors, and show them as a toast
 *   live.js    listen(type, hear) inside useEffect: task, node and reset events
 *   reading.js useReader(ask, keys): an answer that is read again, one request at a time
 *   router.js  place, href(parts, query), go(parts, query)
 *   ui.js      State, Button, Bar, Ago, Copy, Command, Empty, Dialog
 *   format.js  duration, elapsed, ago, clock, count, plural, size, visible, titleOf, byName
 *   keys.js    useKeys({ j: next, "/": focus })
 *
 * A component that reads a signal's `.value` is rendered again when it changes. Styles are
 * in `style.css` (tokens, shared parts) and in `views/NAME.css`, which index.html names.
 * Data of the mesh goes into `${}` only, so it stays text. The page's policy forbids inline
 * scripts, inline style attributes and markup from text (`style=${{ width }}` with an
 * object is fine).
 */

import "./start.js";
import { html, render, useEffect, useState } from "./lib.js";
import { useKeys } from "./keys.js";
import { go, href, place } from "./router.js";
import { end, may, session } from "./session.js";
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
  { name: "submit", title: "Submit", key: "c", view: Submit, isHidden: () => !may.submit.value },
];

const HELP = [
  ...TABS.map(({ title, key }) => [`g ${key}`, title]),
  ["/", "Search or filter"],
  ["j  k", "Next, previous"],
  ["Enter", "Open"],
  ["?", "This help"],
  ["Esc", "Close, go back, or leave a field"],
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
        ${TABS.filter(({ isHidden }) => !isHidden?.()).map(({ name, title, key }) => html`<a href=${href([name])}
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
    ${isHelp && html`<${Dialog} title="Keyboard shortcuts" onClose=${() => setHelp(false)}>
      <dl class="keys">${HELP.map(([keys, what]) => html`<dt>${keys.split(/ +/).map((key) => html`<kbd>${key}</kbd>`)}</dt><dd>${what}</dd>`)}</dl>
    <//>`}`;
}

function Link() {
  const name = dispatcher.value?.name;
  const title = name ? `The dispatcher is ${name}` : "No dispatcher is elected";
  return html`<span class=${`link link-${link.value}`} title=${title}>${LINKS[link.value]}</span>`;
}

function Banner() {
  const said = banner.value
    ?? (link.value === "waiting" ? { kind: "waiting", text: "Connection lost; reconnecting. Running tasks continue." } : null);
  return html`<div role="status">${said && html`<p class=${`banner ${said.kind}`}>${said.text}</p>`}</div>`;
}

function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

render(html`<${App} />`, document.getElementById("app"));
