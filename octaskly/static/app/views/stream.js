import { get } from "../api.js";
import { clock, commandOf, count, duration, plural, titleOf, visible } from "../format.js";
import { useKeys } from "../keys.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "../lib.js";
import { listen } from "../live.js";
import { go, href } from "../router.js";
import { nodes } from "../store.js";
import { Button, Command, Empty, State } from "../ui.js";
import { Lanes, zoomed } from "./lanes.js";
import { Transfers } from "./transfers.js";
import { barAt, colourOf, draw, gutterOf, heightOf, rowsOf } from "./painting.js";

const STEP_PX = 44; //: of the keys up and down
const POLL_MS = 1000;
const REST_MS = 5000; //: where nothing happens
const OVERLAP_S = 8; //: of one answer with the one before
const FIRST_SPAN_MS = 60_000;
const AHEAD = 0.04; //: of the view lies in the future
const FAMILIES_MAX = 14;
const TABLE_MAX = 100;

const dark = matchMedia("(prefers-color-scheme: dark)");

/** What ran where and when: one lane for each slot, coloured by command. */
export function Stream() {
  const { lanes, drift, isLoaded, isCut, problem } = useLanes();
  const [view, setView] = useState({ from: 0, span: FIRST_SPAN_MS, isLive: true });
  const [only, setOnly] = useState(null);
  const [isTable, setTable] = useState(false);
  const now = Date.now() + drift;
  const from = view.isLive ? now - view.span * (1 - AHEAD) : view.from;
  const seen = lanes.between(from, from + view.span);
  const started = seen.filter(({ bar }) => bar.start >= from).length;
  const failed = seen.filter(({ bar }) => bar.status === "failed").length;
  const running = seen.filter(({ bar }) => bar.status === "running").length;
  const families = countFamilies(seen);
  const live = () => setView((before) => ({ ...before, isLive: true }));
  const zoom = (factor) => setView((before) => {
    const start = before.isLive ? now - before.span * (1 - AHEAD) : before.from;
    const around = before.isLive ? now : start + before.span / 2;
    return { ...zoomed({ from: start, span: before.span }, factor, around), isLive: before.isLive };
  });
  const pan = (part) => setView((before) => {
    const start = before.isLive ? now - before.span * (1 - AHEAD) : before.from;
    return { ...before, from: start + before.span * part, isLive: false };
  });
  useKeys({ "+": () => zoom(0.7), "=": () => zoom(0.7), "-": () => zoom(1 / 0.7), h: () => pan(-0.2), l: () => pan(0.2), "0": live });
  if (isLoaded && lanes.size === 0 && lanes.waiting === 0) {
    return html`<${Empty} title="Nothing has run yet"><p>Each task appears here as a bar in the lane of its slot as soon as it starts.</p>
      <${Command} text="octaskly map 'sleep {}' ::: 1 2 3 4 5" /><//>`;
  }
  const counted = `${count(started)} started in ${duration(view.span)}${running ? `, ${count(running)} running` : ""}${failed ? `, ${count(failed)} failed` : ""}${lanes.waiting ? `, ${count(lanes.waiting)} waiting for a slot on their node` : ""}`;
  return html`<div class="head"><h1>Task stream</h1>
      <span class="muted" role="status">${isLoaded ? counted : problem ? `${problem.error}; retrying …` : "Loading …"}</span>
      <div class="end row"><${Button} onPress=${() => zoom(1 / 0.6)} aria-label="Zoom out" title="Zoom out (-)">−<//>
        <${Button} onPress=${() => zoom(0.6)} aria-label="Zoom in" title="Zoom in (+)">+<//>
        <${Button} onPress=${live} kind=${view.isLive ? "primary" : "plain"} aria-pressed=${view.isLive} title="Follow the present (0)">Follow<//></div></div>
    <section class="card stream" aria-label="Task stream">
      <${Picture} lanes=${lanes} drift=${drift} view=${view} setView=${setView} zoom=${zoom} pan=${pan} only=${only} />
      <${Legend} families=${families} states=${new Set(seen.map(({ bar }) => bar.status))} only=${only} setOnly=${setOnly} />
    </section>
    <p class="hint stream-hint">Zoom: wheel or <kbd>+</kbd> <kbd>-</kbd>. Move in time: drag or <kbd>h</kbd> <kbd>l</kbd>. Follow the present: <kbd>0</kbd>.
      ${isCut && " There were very many attempts; the latest are shown."}</p>
    <${Transfers} seen=${seen} />
    <details class="card stream-table" onToggle=${(event) => setTable(event.currentTarget.open)}><summary>Show as a table</summary>
      ${isTable && html`<${Table} seen=${seen} />`}</details>`;
}

/** The recent attempts, read again after events. */
function useLanes() {
  const lanes = useRef(null);
  lanes.current ??= new Lanes();
  const [state, setState] = useState({ drift: 0, isLoaded: false, isCut: false, problem: null });
  useEffect(() => {
    const over = new AbortController();
    let timer = 0;
    let last = 0;
    let isDirty = true;
    const ask = async () => {
      clearTimeout(timer);
      const isFirst = last === 0;
      const since_s = isFirst ? null : Math.min(3600, Math.ceil((Date.now() - last) / 1000) + OVERLAP_S);
      try {
        if (document.hidden || (!isDirty && !isFirst)) return;
        isDirty = false;
        const asked = Date.now();
        const found = await get("/api/v1/attempts", { since_s, limit: 1000 }, { quiet: true, signal: over.signal });
        last = asked;
        lanes.current.fit(nodes.value);
        lanes.current.take(found);
        setState({ drift: Date.parse(found.now) - Date.now(), isLoaded: true, isCut: found.truncated, problem: null });
      } catch (problem) {
        if (over.signal.aborted) return;
        if (problem.status === undefined) throw problem;
        isDirty = true;
        setState((before) => ({ ...before, problem }));
      } finally {
        if (!over.signal.aborted) timer = setTimeout(ask, isDirty ? POLL_MS : POLL_MS / 2);
      }
    };
    const dirty = () => (isDirty = true);
    const ends = [listen("task", dirty), listen("reset", dirty)];
    const rest = setInterval(dirty, REST_MS);
    ask();
    return () => {
      over.abort();
      ends.forEach((end) => end());
      clearTimeout(timer);
      clearInterval(rest);
    };
  }, []);
  return { lanes: lanes.current, ...state };
}

/** The canvas; only its visible part is drawn. */
function Picture({ lanes, drift, view, setView, zoom, pan, only }) {
  const frame = useRef(null);
  const canvas = useRef(null);
  const latest = useRef(null);
  const [size, setSize] = useState({ width: 0, height: 0 });
  const [hover, setHover] = useState(null);
  const drag = useRef(null);
  const rows = rowsOf(lanes);
  const whole = heightOf(rows);
  latest.current = { lanes, drift, view, only, rows, size };

  useLayoutEffect(() => {
    const measure = new ResizeObserver(() => setSize({ width: frame.current.clientWidth, height: frame.current.clientHeight }));
    measure.observe(frame.current);
    return () => measure.disconnect();
  }, []);
  const window_ = () => {
    const { view: { isLive, span, from }, drift: off } = latest.current;
    return { from: isLive ? Date.now() + off - span * (1 - AHEAD) : from, span };
  };
  useEffect(() => {
    let next = 0;
    let handle = 0;
    let drawnAs = "";
    const loop = (time) => {
      if (frame.current === null) return; // The effect may start after the view was removed.
      handle = requestAnimationFrame(loop);
      const now = latest.current;
      const as = `${now.size.width} ${now.size.height} ${dark.matches}`;
      if ((time < next && as === drawnAs) || document.hidden) return;
      drawnAs = as;
      // Movements of less than a pixel are not drawn.
      next = time + (now.view.isLive ? Math.min(250, Math.max(33, now.view.span / Math.max(1, now.size.width))) : 100);
      draw(canvas.current, { ...now, ...window_(), scrollTop: frame.current.scrollTop, now: Date.now() + now.drift });
    };
    handle = requestAnimationFrame(loop);
    return () => cancelAnimationFrame(handle);
  }, []);
  const timeAt = (x) => {
    const { from, span } = window_();
    const gutter = gutterOf(size.width);
    return from + ((x - gutter) / Math.max(1, size.width - gutter)) * span;
  };
  const onWheel = (event) => {
    event.preventDefault();
    const { from, span } = window_();
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      setView((before) => ({ ...before, from: from + ((event.deltaX || event.deltaY) / size.width) * span, isLive: false }));
      return;
    }
    const factor = Math.exp(Math.min(240, Math.max(-240, event.deltaY)) * 0.0022);
    const isLive = latest.current.view.isLive;
    const around = isLive ? Date.now() + drift : timeAt(event.offsetX);
    setView({ ...zoomed({ from, span }, factor, around), isLive });
  };
  useEffect(() => {
    // By hand, as a passive listener could not keep the page from scrolling.
    const element = canvas.current;
    element.addEventListener("wheel", onWheel, { passive: false });
    return () => element.removeEventListener("wheel", onWheel);
  });
  const onPointerDown = (event) => {
    if (event.button !== 0) return;
    const { from } = window_();
    drag.current = { x: event.clientX, y: event.clientY, from, top: frame.current.scrollTop, isMoved: false };
    canvas.current.setPointerCapture(event.pointerId);
  };
  const onPointerMove = (event) => {
    const begun = drag.current;
    if (begun === null) {
      const found = barAt(rows, event.offsetX, event.offsetY, { ...window_(), width: size.width, scrollTop: frame.current.scrollTop });
      setHover(found && { ...found, x: event.offsetX, y: event.offsetY });
      return;
    }
    const dx = event.clientX - begun.x;
    if (!begun.isMoved && Math.hypot(dx, event.clientY - begun.y) < 4) return;
    begun.isMoved = true;
    setHover(null);
    const { span } = window_();
    frame.current.scrollTop = begun.top - (event.clientY - begun.y);
    setView((before) => ({ ...before, from: begun.from - (dx / (size.width - gutterOf(size.width))) * span, isLive: false }));
  };
  const onPointerUp = () => {
    if (drag.current && !drag.current.isMoved && hover) go(["tasks", hover.bar.attempt.id]);
    drag.current = null;
  };
  const keys = {
    ArrowLeft: () => pan(-0.1), ArrowRight: () => pan(0.1), PageUp: () => pan(-0.8), PageDown: () => pan(0.8),
    ArrowUp: () => frame.current.scrollBy(0, -STEP_PX), ArrowDown: () => frame.current.scrollBy(0, STEP_PX),
    End: () => setView((before) => ({ ...before, isLive: true })),
  };
  const onKeyDown = (event) => {
    if (!Object.hasOwn(keys, event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  };
  const height = `min(${whole}px, max(260px, 100dvh - 340px))`;
  return html`<div class="stream-frame" ref=${frame} tabindex="0" role="group" style=${{ height }} onKeyDown=${onKeyDown}
      aria-label="Attempts over time, one lane for each slot. Arrow keys move; the table below has the same data.">
    <canvas ref=${canvas} class="stream-canvas" role="presentation" style=${{ height: `${size.height}px`, width: `${size.width}px` }}
      onPointerDown=${onPointerDown} onPointerMove=${onPointerMove} onPointerUp=${onPointerUp}
      onPointerLeave=${() => setHover(null)}></canvas>
    <div style=${{ height: `${Math.max(0, whole - size.height)}px` }}></div>
    ${hover && html`<${Tip} hover=${hover} size=${size} top=${frame.current.scrollTop} now=${Date.now() + drift} />`}
  </div>`;
}

function Tip({ hover, size: { width, height }, top, now }) {
  const { bar, node, lane, x, y } = hover;
  const { attempt } = bar;
  const place = x > width / 2 ? { right: `${width - x + 12}px` } : { left: `${x + 12}px` };
  const isLow = y > height / 2;
  const level = { top: `${top + y + (isLow ? -10 : 14)}px`, transform: isLow ? "translateY(-100%)" : "none" };
  return html`<div class="stream-tip" role="tooltip" style=${{ ...place, ...level }}>
    <p><i class="swatch" style=${{ background: colourOf(bar.family) }}></i><strong><bdi>${visible(attempt.name ?? bar.family)}</bdi></strong> <${State} of=${bar.status} /></p>
    <p><code>${commandOf(attempt)}</code></p>
    <p class="muted">${node}, slot ${lane + 1} · ${duration(Math.min(bar.end, now) - bar.start)}${endOf(attempt)}${attempt.attempt > 1 ? ` · attempt ${attempt.attempt}` : ""}</p>
    <p class="muted">${attempt.id}</p></div>`;
}

function endOf({ reason, exit_code: code }) {
  if (reason === null || (reason === "exit" && code === 0)) return "";
  return ` · ${reason === "exit" ? `exit code ${code}` : reason}`;
}

function countFamilies(seen) {
  const counts = new Map();
  for (const { bar } of seen) counts.set(bar.family, (counts.get(bar.family) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]);
}

const MARKS = [["running", "running"], ["failed", "failed"], ["released", "lost or returned"], ["cancelled", "cancelled"]];

function Legend({ families, states, only, setOnly }) {
  const rest = families.length - FAMILIES_MAX;
  return html`<div class="stream-legend">
    <div class="legend-part" role="group" aria-label="Commands">
      ${families.slice(0, FAMILIES_MAX).map(([family, many]) => html`<button type="button" key=${family} class="chip" aria-pressed=${only === family}
        onClick=${() => setOnly(only === family ? null : family)}><i class="swatch" style=${{ background: colourOf(family) }}></i>${family}
        <span class="muted">${count(many)}</span></button>`)}
      ${rest > 0 && html`<span class="muted">and ${count(rest)} more</span>`}</div>
    <p class="legend-part legend-marks">${MARKS.filter(([state]) => states.has(state)).map(([state, text]) => html`<span key=${state}>
      <i class=${`mark mark-${state}`}>${state === "failed" && "×"}</i>${text}</span>`)}</p>
  </div>`;
}

function Table({ seen }) {
  const rows = seen.slice(0, TABLE_MAX);
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Attempts in this time"><table>
    <thead><tr><th scope="col">Task</th><th scope="col">Command</th><th scope="col">Node</th><th scope="col" class="number">Slot</th><th scope="col">State</th>
      <th scope="col">Started</th><th scope="col" class="number">Took</th></tr></thead>
    <tbody>${rows.map(({ bar, node, lane }) => html`<tr key=${bar.key}><td><a href=${href(["tasks", bar.attempt.id])}>${titleOf(bar.attempt)}</a></td>
      <td class="member-command"><code>${commandOf(bar.attempt)}</code></td><td>${node}</td><td class="number">${lane + 1}</td><td><${State} of=${bar.status} /></td>
      <td class="nowrap">${clock(new Date(bar.start).toISOString())}</td><td class="number nowrap">${Number.isFinite(bar.end) ? duration(bar.end - bar.start) : "–"}</td></tr>`)}</tbody></table></div>
    ${seen.length > rows.length && html`<p class="hint">The latest ${TABLE_MAX} of ${count(seen.length)}.</p>`}`;
}
