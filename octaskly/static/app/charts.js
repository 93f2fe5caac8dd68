/** Live charts, drawn by uPlot in the colours of the page. */

import uPlot from "../vendor/uplot.js";
import { timeOfDay } from "./format.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./lib.js";

const SPAN_S_MIN = 30;
const WHOLE = [1, 2, 5].flatMap((n) => Array.from({ length: 9 }, (_, power) => n * 10 ** power)).sort((a, b) => a - b);

const dark = matchMedia("(prefers-color-scheme: dark)");

/** Returns a colour of style.css: `colour("--running")`. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/**
 * A chart over time.
 * @param {object} props
 * @param {string} props.title
 * @param {string} props.now The current values, in words.
 * @param {number[]} props.at Seconds since 1970, ascending.
 * @param {{label: string, token: string, values: number[], fill?: boolean, isRight?: boolean}[]} props.series
 *   One of them may have the scale on the right: few running tasks would be flat below a long queue.
 * @param {(value: number) => string} props.format
 */
export function Chart({ title, now, at, series, format, isWhole = false, spanS = 600 }) {
  const holder = useRef(null);
  const plot = useRef(null);
  const [isDark, setDark] = useState(dark.matches);

  useEffect(() => {
    const turn = () => setDark(dark.matches);
    dark.addEventListener("change", turn);
    return () => dark.removeEventListener("change", turn);
  }, []);

  useLayoutEffect(() => {
    const size = () => ({ width: Math.max(120, holder.current.clientWidth), height: Math.max(100, holder.current.clientHeight) });
    plot.current = new uPlot({ ...size(), ...options(series, format, isWhole) }, data(at, series), holder.current);
    const watch = new ResizeObserver(() => plot.current.setSize(size()));
    watch.observe(holder.current);
    return () => {
      watch.disconnect();
      plot.current.destroy();
    };
  }, [isDark]);

  useLayoutEffect(() => {
    const last = at.at(-1) ?? Date.now() / 1000;
    const first = Math.max(at[0] ?? last, last - spanS);
    plot.current.batch(() => {
      plot.current.setData(data(at, series), false);
      plot.current.setScale("x", { min: Math.min(first, last - SPAN_S_MIN), max: last });
      for (const side of scalesOf(series)) plot.current.setScale(side, rangeOf(series.filter((one) => scaleOf(one) === side), side));
    });
  }, [at, isDark]);

  return html`<figure class="card chart">
    <figcaption><h2>${title}</h2><span class="chart-now">${now}</span></figcaption>
    <div class="chart-plot" ref=${holder} aria-hidden="true"></div>
    <ul class="key-list">${series.map(({ label, token, isRight }) => html`<li class=${`key ${token}`}>${label}${isRight ? " (right scale)" : ""}</li>`)}</ul>
  </figure>`;
}

const data = (at, series) => [at, ...series.map(({ values }) => values)];

const scaleOf = ({ isRight }) => (isRight ? "right" : "y");
const scalesOf = (series) => new Set(series.map(scaleOf));

function rangeOf(series, side) {
  const most = Math.max(1, ...series.flatMap(({ values }) => values));
  // The room above differs, so that the highest lines do not lie on each other.
  return { min: 0, max: most * (side === "right" ? 1.6 : 1.15) };
}

function options(series, format, isWhole) {
  const { fontFamily, fontSize } = getComputedStyle(document.body);
  const em = Math.round(parseFloat(fontSize) * 0.8);
  const axis = {
    stroke: colour("--muted"),
    font: `${em}px ${fontFamily}`,
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { show: false },
  };
  const hasRight = series.some(({ isRight }) => isRight);
  const values = { ...axis, size: 4.2 * em, space: 4 * em, values: (_, marks) => marks.map(format), ...(isWhole ? { incrs: WHOLE } : {}) };
  return {
    legend: { show: false },
    cursor: { show: false },
    padding: [8, hasRight ? 0 : 3 * em, 0, 0], // Half of the last time is right of its mark.
    scales: { x: { time: true }, y: { auto: false }, right: { auto: false } },
    axes: [
      { ...axis, grid: { show: false }, size: 2.2 * em, space: 8 * em, values: (_, times) => times.map((s) => timeOfDay(s * 1000)) },
      values,
      ...(hasRight ? [{ ...values, scale: "right", side: 1, grid: { show: false }, stroke: colour(`--${series.find(({ isRight }) => isRight).token}`) }] : []),
    ],
    series: [
      {},
      ...series.map(({ label, token, fill, isRight }) => ({
        label,
        scale: scaleOf({ isRight }),
        stroke: colour(`--${token}`),
        width: 1.75,
        fill: fill ? `${colour(`--${token}`)}22` : undefined,
        points: { show: false },
      })),
    ],
  };
}
