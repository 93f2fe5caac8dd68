import { mayPass } from "../api.js";
import { ago, commandOf, count, duration, elapsed, plural, titleOf, visible } from "../format.js";
import { useKeys } from "../keys.js";
import { html, useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from "../lib.js";
import { listen } from "../live.js";
import { go, href, place as address } from "../router.js";
import { may } from "../session.js";
import { nodes, now } from "../store.js";
import { Button, Command, Empty, State } from "../ui.js";
import { told } from "./members.js";
import { Finds, Pages } from "./rows.js";
import { Task } from "./task.js";
import { Track, clamp } from "./virtual.js";
import { WhyDialog } from "./why.js";

const STATES = ["queued", "running", "completed", "failed", "cancelled"];
const TYPED_MS = 250;
const SEARCHES = ["text", "label", "name", "ended_within_s"];
const TIMES = [["", "Any time"], ["3600", "Last hour"], ["86400", "Last day"], ["604800", "Last week"]];
const ROW_PX = 40;
const NARROW_PX = 560; //: in a narrower list each row has two lines
const NARROW_ROW_PX = 64;

/** @param {{parts: string[], query: URLSearchParams}} props */
export function Tasks({ parts, query }) {
  return parts.length ? html`<${Task} key=${parts[0]} id=${parts[0]} />` : html`<${List} query=${query} />`;
}

function List({ query }) {
  const asked = Object.fromEntries(query);
  // A field reports its text late, and must not undo what was chosen meanwhile.
  const change = (more) => go(["tasks"], { ...Object.fromEntries(address.value.query), ...more }, { replace: true });
  const { order, status = "", node = "", ...search } = asked;
  const isSearch = SEARCHES.some((name) => search[name]);
  const given = { status, worker_id: node, ...Object.fromEntries(SEARCHES.map((name) => [name, search[name]])) };
  const key = JSON.stringify([given, order]);
  const rows = useMemo(() => new (isSearch ? Finds : Pages)(given, order !== "oldest"), [key]);
  useEffect(() => {
    const ends = [listen("task", (event) => rows.hear(event)), listen("reset", () => rows.refresh())];
    return () => {
      ends.forEach((end) => end());
      rows.close();
    };
  }, [rows]);
  const [why, setWhy] = useState(null);
  const isFiltered = isSearch || status || node;
  const problem = rows.problem.value;
  const isRefused = rows.total.value === null && problem !== null && !mayPass(problem);
  return html`
    <div class="head"><h1>Tasks</h1>${!isRefused && html`<${Found} rows=${rows} isSearch=${isSearch} />`}
      ${may.submit.value && html`<a class="button primary end" href=${href(["submit"])}>Submit<span class="wide-only">a task</span></a>`}</div>
    <${Filters} asked=${asked} change=${change} />
    ${problem && html`<p class="problem" role="alert"><${Problem} of=${problem} /></p>`}
    ${!isRefused && (rows.total.value === 0 && !rows.isBusy?.value
      ? html`<${Nothing} isFiltered=${isFiltered} ofFailed=${status === "failed"} clear=${() => go(["tasks"])} />`
      : html`<${Grid} key=${key} rows=${rows} why=${setWhy} />`)}
    ${why && html`<${WhyDialog} task=${why} onClose=${() => setWhy(null)} />`}`;
}

function Problem({ of }) {
  return html`<strong>${of.error}</strong>${of.hint && html` – ${of.hint}`}${mayPass(of) && "; retrying …"}`;
}

/** The number of rows, or the progress of a search. */
function Found({ rows, isSearch }) {
  const total = rows.total.value;
  if (total === null) return html`<span class="muted" role="status">Loading …</span>`;
  if (!isSearch) {
    return html`<span class="muted" role="status" title="An array is one row">${count(total)}</span>`;
  }
  const left = rows.left.value;
  const more = left ? `, ${count(left)} not searched yet` : rows.isOver.value ? "" : ", more below";
  const busy = rows.isBusy.value ? "; searching …" : "";
  return html`<span class="muted" role="status">${count(total)} found${more}${busy}</span>`;
}

function Nothing({ isFiltered, ofFailed, clear }) {
  if (!isFiltered) {
    return html`<${Empty} title="No tasks yet"><p>Type this in a terminal on any node, or submit a task here.</p>
      <${Command} text="octaskly run -- hostname" /><//>`;
  }
  return html`<${Empty} title="No task matches"><p>Try fewer filters.${ofFailed && html` The failed members of an array that still runs are on <a href=${href(["arrays"])}>its page</a>.`}</p>
    <p><${Button} onPress=${clear}>Clear filters<//></p><//>`;
}

function Filters({ asked, change }) {
  const search = useRef(null);
  const [isOpen, setOpen] = useState(false);
  const id = useId();
  useKeys({ "/": () => search.current.focus() });
  const press = (state) => change({ status: asked.status === state ? "" : state });
  const filters = ["status", "node", ...SEARCHES];
  const clear = () => change(Object.fromEntries(filters.map((name) => [name, ""])));
  const given = filters.filter((name) => asked[name]).length;
  return html`<form class="filters" role="search" aria-label="Filter tasks" onSubmit=${(event) => event.preventDefault()}>
    <span class="search"><${Typed} field=${search} type="search" label="Search command or name" placeholder="Command or name"
      value=${asked.text ?? ""} change=${(text) => change({ text })} /><kbd aria-hidden="true">/</kbd></span>
    <button type="button" class="button filters-fold" aria-expanded=${isOpen} aria-controls=${id}
      onClick=${() => setOpen(!isOpen)}>Filters${given > 0 && ` (${given})`}</button>
    <div id=${id} class=${`filters-more ${isOpen ? "open" : ""}`}>
    <div class="states" role="group" aria-label="State">
      ${STATES.map((state) => html`<button type="button" class="chip" aria-pressed=${asked.status === state}
        onClick=${() => press(state)}><${State} of=${state} /></button>`)}
    </div>
    <select aria-label="Node" value=${asked.node ?? ""} onChange=${(event) => change({ node: event.currentTarget.value })}>
      <option value="">All nodes</option>
      ${nodes.value.map(({ name }) => html`<option value=${name} key=${name}>${name}</option>`)}
    </select>
    <select aria-label="Ended" title="When they ended" value=${asked.ended_within_s ?? ""} onChange=${(event) => change({ ended_within_s: event.currentTarget.value })}>
      ${TIMES.map(([seconds, text]) => html`<option value=${seconds} key=${seconds}>${text}</option>`)}
    </select>
    <${Typed} label="Label" placeholder="label=value" value=${asked.label ?? ""} change=${(label) => change({ label })} />
    <select aria-label="Order" value=${asked.order ?? ""} onChange=${(event) => change({ order: event.currentTarget.value })}>
      <option value="">Newest first</option><option value="oldest">Oldest first</option>
    </select>
    ${given > 0 && html`<${Button} onPress=${clear}>Clear<//>`}
    </div>
  </form>`;
}

/** A field that reports its text after a pause in typing. */
function Typed({ label, value, change, field, type = "text", ...rest }) {
  const [text, setText] = useState(value);
  const timer = useRef(0);
  const reported = useRef(value);
  useLayoutEffect(() => {
    if (value === reported.current) return; // Its own; more may have been typed since.
    clearTimeout(timer.current);
    reported.current = value;
    setText(value);
  }, [value]);
  useEffect(() => () => clearTimeout(timer.current), []);
  const type_ = (event) => {
    const typed = event.currentTarget.value;
    setText(typed);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => {
      reported.current = typed.trim();
      change(reported.current);
    }, TYPED_MS);
  };
  return html`<input ref=${field} type=${type} aria-label=${label} value=${text} maxlength="256"
    autocomplete="off" spellcheck=${false} onInput=${type_} ...${rest} />`;
}

/** The visible rows, in a frame that scrolls over all rows. */
function Grid({ rows, why }) {
  const total = rows.total.value ?? 0;
  const frame = useRef(null);
  const scroll = useRef({ top: 0, px: 0, total: null, sync: 0, chosen: -1, id: null }).current;
  const [view, setView] = useState({ viewPx: 600, rowPx: ROW_PX, barPx: 0 });
  const [, redraw] = useState(0);
  const id = useId();
  const { viewPx, rowPx, barPx } = view;
  const track = new Track({ total, viewPx, rowPx });
  rows.drawn.value; // Draws again when rows have changed.
  stay(rows, scroll, total);
  const { chosen } = scroll;

  useLayoutEffect(() => {
    const measure = new ResizeObserver(() => setView(measured(frame.current)));
    measure.observe(frame.current);
    return () => measure.disconnect();
  }, []);
  useLayoutEffect(() => {
    scroll.top = clamp(scroll.top, 0, track.topMax);
    place(frame.current, scroll, track);
  }, [total, viewPx, rowPx]);

  const move = (top) => {
    scroll.top = clamp(top, 0, track.topMax);
    place(frame.current, scroll, track);
    redraw((n) => n + 1);
  };
  const onScroll = () => {
    if (frame.current === null) return; // The event came after the list was removed.
    const px = frame.current.scrollTop;
    if (Math.abs(px - scroll.px) < 1) return;
    scroll.top = track.topAfter(scroll.top, scroll.px, px);
    scroll.px = px;
    clearTimeout(scroll.sync);
    scroll.sync = setTimeout(() => frame.current && place(frame.current, scroll, track), 200);
    redraw((n) => n + 1);
  };
  const pick = (index) => {
    Object.assign(scroll, { chosen: index, id: rows.at(index)?.id ?? null });
    redraw((n) => n + 1);
  };
  const choose = (index) => {
    const next = clamp(index, 0, total - 1);
    pick(next);
    move(track.topFor(next, scroll.top));
    frame.current.parentElement.focus({ preventScroll: true }); // So that it gets Enter.
  };
  const open = () => rows.at(chosen) && go(["tasks", rows.at(chosen).id]);
  const page = Math.max(1, Math.floor(track.views) - 1);
  const keys = {
    j: () => choose(chosen + 1), k: () => choose(chosen < 0 ? 0 : chosen - 1),
    w: () => rows.at(chosen) && why(rows.at(chosen)),
  };
  useKeys(keys);
  const walk = {
    ArrowDown: keys.j, ArrowUp: keys.k, PageDown: () => choose(chosen + page), PageUp: () => choose(chosen - page),
    Home: () => choose(0), End: () => choose(total - 1), Enter: open,
  };
  const onKeyDown = (event) => {
    if (!Object.hasOwn(walk, event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" && event.target !== event.currentTarget) return; // A link or button in it.
    event.preventDefault();
    walk[event.key]();
  };

  const { first, last, shiftPx } = track.rowsInSight(scroll.top);
  useEffect(() => rows.want(first, last), [rows, first, last, total]);
  // Rows move with their tasks, or a click would be for the task that has come there.
  const shown = new Map();
  for (let index = first; index < last; index += 1) {
    const task = rows.at(index);
    const key = task === undefined || shown.has(task.id) ? `row ${index}` : task.id;
    shown.set(key, html`<${Row} key=${key} index=${index} task=${task} id=${`${id}-${index}`}
      isChosen=${index === chosen} choose=${() => pick(index)} why=${why} />`);
  }
  const active = chosen >= first && chosen < last ? `${id}-${chosen}` : undefined;
  return html`<div class=${`grid card ${rowPx === NARROW_ROW_PX ? "narrow" : ""}`} role="grid" aria-label="Tasks" aria-rowcount=${total + 1} tabindex="0"
      aria-activedescendant=${active} onKeyDown=${onKeyDown}>
    <div role="rowgroup"><div class="grid-row grid-head" role="row" aria-rowindex="1" style=${{ marginRight: `${barPx}px` }}>
      ${["State", "Task", "Node", "Exit", "Took", "Submitted", ""].map((name, n) => html`<span role="columnheader"
        class=${`cell-${n}`}>${name || html`<span class="visually-hidden">Why</span>`}</span>`)}
    </div></div>
    <div class="grid-frame" role="rowgroup" tabindex="0" ref=${frame} onScroll=${onScroll}>
      <div class="grid-rows" role="presentation" style=${{ height: `${viewPx}px` }}>
        <div role="presentation" style=${{ transform: `translateY(${shiftPx}px)` }}>${[...shown.values()]}</div></div>
      <div role="presentation" style=${{ height: `${Math.max(0, track.px - viewPx)}px` }}></div>
    </div>
  </div>
  <p class="hint keys-hint"><kbd>j</kbd><kbd>k</kbd> move <kbd>Enter</kbd> open <kbd>w</kbd> why <kbd>/</kbd> search</p>`;
}

/** Keeps the visible rows in place when new ones come above them, and a task chosen. */
function stay(rows, scroll, total) {
  const came = scroll.total === null || !rows.isNewestFirst ? 0 : total - scroll.total;
  scroll.total = total;
  if (scroll.top > 0) scroll.top = Math.max(0, scroll.top + came);
  if (scroll.chosen < 0) return;
  scroll.chosen = clamp(scroll.chosen + came, 0, total - 1);
  if (scroll.id !== null && rows.at(scroll.chosen)?.id !== scroll.id) {
    const at = rows.indexOf(scroll.id); // Others may have left the list.
    if (at >= 0) scroll.chosen = at;
  }
  scroll.id = rows.at(scroll.chosen)?.id ?? scroll.id;
}

function measured(frame) {
  const rowPx = frame.clientWidth < NARROW_PX ? NARROW_ROW_PX : ROW_PX;
  return { viewPx: frame.clientHeight, rowPx, barPx: frame.offsetWidth - frame.clientWidth };
}

function place(frame, scroll, track) {
  frame.scrollTop = track.scrollOf(scroll.top);
  scroll.px = frame.scrollTop;
}

function Row({ task, index, id, isChosen, choose, why }) {
  const shared = { id, class: `grid-row ${task?.array ? "array-row" : ""}`, role: "row", "aria-rowindex": index + 2, "aria-selected": isChosen };
  if (task === undefined) {
    return html`<div ...${shared} aria-busy="true"><span role="gridcell" class="cell-all"><i class="ghost"></i></span></div>`;
  }
  return html`<div ...${shared} onClick=${choose} onDblClick=${() => go(["tasks", task.id])}>
    <span role="gridcell" class="cell-0"><${State} of=${task.status} /></span>
    <span role="gridcell" class="cell-1"><a href=${href(["tasks", task.id])} tabindex="-1" title=${`${task.id}\n${commandOf(task)}`}>
      <span class="short-id">${task.short_id}</span>${task.name && html`<strong><bdi>${visible(task.name)}</bdi></strong> `}<code>${commandOf(task)}</code></a>
      ${task.array && html`<span class="tag">${told(task.array)}</span>`}
      ${task.missing_output && html`<span class="tag">without <bdi>${visible(task.missing_output)}</bdi></span>`}
      ${Object.entries(task.labels ?? {}).slice(0, 3).map(([name, value]) => html`<a class="tag label" tabindex="-1"
        href=${href(["tasks"], { label: `${name}=${value}` })}>${value ? `${name}=${value}` : name}</a>`)}</span>
    <span role="gridcell" class="cell-2">${task.array ? html`<span class="narrow-only">${told(task.array)}</span>` : task.worker_id ?? ""}</span>
    <span role="gridcell" class=${`cell-3 ${task.reason === "exit" ? "code" : ""}`}>${exitOf(task)}</span>
    <span role="gridcell" class=${`cell-4 ${task.status}`}>${task.status === "running" ? html`<${Running} at=${task.started_at} />` : tookOf(task)}</span>
    <span role="gridcell" class="cell-5" title=${task.created_at}>${ago(task.created_at, now.value)}</span>
    <span role="gridcell" class="cell-6">${WHY[task.status] && html`<button type="button" class="button small"
      tabindex="-1" onClick=${() => why(task)} aria-label=${`${WHY[task.status]} ${task.name ? titleOf(task) : commandOf(task)}?`}>Why?</button>`}</span>
  </div>`;
}

const WHY = { queued: "Why is it queued:", failed: "Why did it fail:" };

/** The time that it has run. */
function Running({ at }) {
  return at ? elapsed(at, now.value) : "";
}

const tookOf = (task) => (task.duration_ms == null ? "" : duration(task.duration_ms));

/** The exit code, or what else ended a task. */
function exitOf({ exit_code: code, reason }) {
  if (reason && reason !== "exit" && reason !== "cancelled") return reason;
  return code ?? "";
}
