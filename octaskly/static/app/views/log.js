import { download } from "../api.js";
import { count, plural } from "../format.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "../lib.js";
import { Button, Command } from "../ui.js";
import { follow } from "./following.js";

const LINE_PX = 20;
const AROUND = 12; //: lines drawn beyond both edges
const END_PX = 30; //: this close to the end counts as the end

/**
 * The live output of a task; only visible lines are in the page. Stdout of a Python call
 * is its pickled result, so it shows stderr, where everything goes that the call prints.
 */
export function Log({ id, attempts, isCall = false }) {
  const [attempt, setAttempt] = useState("");
  const [stream, setStream] = useState(isCall ? "stderr" : "both");
  const [drawn, redraw] = useState(0);
  const source = useRef(null);
  useEffect(() => {
    source.current = follow(id, attempt, () => redraw((n) => n + 1));
    redraw((n) => n + 1);
    return () => source.current.close();
  }, [id, attempt]);
  const { output, state } = source.current ?? { output: null, state: {} };
  const all = output?.lines ?? [];
  const lines = stream === "both" ? all : all.filter((line) => line.stream === stream || line.stream === "note");
  return html`<section class="card log" aria-label="Output">
    <div class="log-head"><h2>Output</h2>
      <span class="muted" role="status">${standing(state, lines.length)}</span>
      <div class="end row">
        ${!isCall && html`<select aria-label="Stream" value=${stream} onChange=${(event) => setStream(event.currentTarget.value)}>
          <option value="both">stdout and stderr</option><option value="stdout">stdout</option><option value="stderr">stderr</option>
        </select>`}
        ${attempts.length > 1 && html`<select aria-label="Attempt" value=${attempt} onChange=${(event) => setAttempt(event.currentTarget.value)}>
          <option value="">Latest attempt</option>
          ${attempts.map((one) => html`<option key=${one.attempt} value=${one.attempt}>Attempt ${one.attempt} on ${one.worker_id}</option>`)}
        </select>`}
        ${lines.length > 0 && (stream === "both" ? ["stdout", "stderr"] : [stream]).filter((name) => all.some((line) => line.stream === name))
          .map((name) => html`<${Button} key=${name} kind="small" title=${`Download all of ${name}`} onPress=${() => download(`/api/v1/tasks/${encodeURIComponent(id)}/${name}${attempt ? `?attempt=${attempt}` : ""}`, `${id}.${name}.txt`)}>Download ${name}<//>`)}
      </div>
    </div>
    ${output?.dropped > 0 && html`<div class="log-cut"><p>${plural(output.dropped, "earlier line")} not shown. For all of them, type this in a terminal:</p>
      <${Command} text=${`octaskly logs ${id}`} /></div>`}
    <${Lines} key=${`${attempt}${stream}`} lines=${lines} isOver=${state.isOver} drawn=${drawn} />
  </section>`;
}

function standing({ isOver, problem }, many) {
  if (problem) return `${problem.error}${isOver ? "" : "; retrying …"}`;
  return `${plural(many, "line")}${isOver ? "" : " so far"}`;
}

/** `lines` is one growing list; `drawn` changes with it. */
function Lines({ lines, isOver }) {
  const frame = useRef(null);
  const [view, setView] = useState({ top: 0, height: 400 });
  const [isAtEnd, setAtEnd] = useState(true);
  useLayoutEffect(() => {
    const measure = new ResizeObserver(() => setView((before) => ({ ...before, height: frame.current.clientHeight })));
    measure.observe(frame.current);
    return () => measure.disconnect();
  }, []);
  useLayoutEffect(() => {
    if (isAtEnd) frame.current.scrollTop = lines.length * LINE_PX;
  }, [lines.length, isAtEnd, view.height]);
  const onScroll = ({ currentTarget }) => {
    const { scrollTop, clientHeight, scrollHeight } = currentTarget;
    setView({ top: scrollTop, height: clientHeight });
    setAtEnd(scrollTop + clientHeight >= scrollHeight - END_PX);
  };
  const first = Math.max(0, Math.min(lines.length, Math.floor(view.top / LINE_PX)) - AROUND);
  const last = Math.min(lines.length, Math.ceil((view.top + view.height) / LINE_PX) + AROUND);
  const widest = lines.slice(first, last).reduce((most, line) => Math.max(most, line.chars), 0);
  const height = `min(clamp(180px, 52dvh, 900px), ${Math.max(3, lines.length + 1) * LINE_PX}px)`;
  return html`<div class="log-frame" style=${{ height }} role="log" aria-live="off" aria-label="Output lines" tabindex="0" ref=${frame} onScroll=${onScroll}>
      ${lines.length === 0 && html`<p class="muted log-none">${isOver ? "No output." : "No output yet."}</p>`}
      <div class="log-lines" style=${{ height: `${lines.length * LINE_PX}px`, minWidth: `${widest + 8}ch` }}>
        <div style=${{ transform: `translateY(${first * LINE_PX}px)` }}>
          ${lines.slice(first, last).map((line, n) => html`<${LineOf} key=${first + n} line=${line} chars=${line.chars} spans=${line.spans.length} />`)}
        </div></div>
    </div>
    ${!isAtEnd && html`<p class="log-end"><${Button} onPress=${() => setAtEnd(true)}>Jump to the end (${count(lines.length)})<//></p>`}`;
}

function LineOf({ line }) {
  if (line.stream === "note") return html`<div class="log-line log-note">${line.spans[0].text}</div>`;
  return html`<div class=${`log-line log-${line.stream}`}><span class="log-number" aria-hidden="true">${line.number}</span>
    <span class="log-mark">${line.stream === "stderr" ? html`<abbr title="stderr">err</abbr>` : ""}</span>
    <span class="log-text">${line.spans.map(({ text, style }, n) => {
      const { name, css } = looks(style);
      return name || css ? html`<span key=${n} class=${name} style=${css}>${text}</span>` : text;
    })}</span></div>`;
}

/**
 * Returns classes for the colours of the page, and a style for other colours: their hue,
 * with a lightness that can be read.
 */
function looks(style) {
  const names = [];
  const css = {};
  const { fg, bg, ...flags } = style;
  for (const flag of Object.keys(flags)) names.push(`sgr-${flag}`);
  if (typeof fg === "number") names.push(`fg-${fg}`);
  else if (fg !== undefined) css.color = `oklch(from ${fg} clamp(var(--log-l-min), l, var(--log-l-max)) c h)`;
  if (typeof bg === "number") names.push(`bg-${bg}`);
  else if (bg !== undefined) css.backgroundColor = `color-mix(in srgb, ${bg} 32%, transparent)`;
  return { name: names.join(" ") || undefined, css: Object.keys(css).length ? css : undefined };
}
