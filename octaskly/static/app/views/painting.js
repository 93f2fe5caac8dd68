/** Draws the task stream on a canvas. */

import { byName, timeOfDay, visible } from "../format.js";
import { ticks, toneOf } from "./lanes.js";

const LANE_PX = [[16, 28], [48, 22], [Infinity, 17]]; //: of so many lanes at most
const NODE_GAP_PX = 10;
const AXIS_PX = 28;
const BETWEEN_PX = 5; //: from one bar to that below
const FAILED_PX = 14; //: at least, for what failed: it has a cross
const NOW_PX = 48; //: beside the word "now" the axis has no time
const NAME_PX = 10; //: left of the name of a node
const TEXT_PX = 34; //: in less room a bar has no title

/** Where bars begin: left of that stand the names of nodes. */
export const gutterOf = (width) => (width < 560 ? 92 : 132);

/** One colour for each family, as good on a light page as on a dark one. */
export function colourOf(family) {
  const { hue, light } = toneOf(family);
  return `oklch(${light} 0.13 ${hue})`;
}

/** The lanes from the top, each with its node and number, and where it is. */
export function rowsOf(lanes) {
  const rows = [];
  let y = AXIS_PX;
  const nodes = [...lanes.nodes].map(([name, own]) => ({ name, own })).sort(byName);
  const many = nodes.reduce((sum, { own }) => sum + own.length, 0);
  const px = LANE_PX.find(([most]) => many <= most)[1];
  for (const { name: node, own } of nodes) {
    own.forEach((bars, lane) => {
      rows.push({ node, lane, bars, y, px });
      y += px;
    });
    y += NODE_GAP_PX;
  }
  return rows;
}

export function heightOf(rows) {
  const last = rows.at(-1);
  return (last ? last.y + last.px : AXIS_PX) + NODE_GAP_PX;
}

/** The bar at a place of the canvas, or null. */
export function barAt(rows, x, y, { from, span, width, scrollTop }) {
  const row = rows.find((one) => y + scrollTop >= one.y && y + scrollTop < one.y + one.px);
  const gutter = gutterOf(width);
  if (row === undefined || x < gutter || y < AXIS_PX) return null;
  const perPx = span / (width - gutter);
  const time = from + (x - gutter) * perPx;
  const near = 2 * perPx;
  const failed = row.bars.findLast((one) => isFailed(one) && one.end - FAILED_PX * perPx <= time && one.end >= time);
  const bar = failed ?? row.bars.findLast((one) => one.start - near <= time && one.end + near >= time);
  return bar ? { bar, node: row.node, lane: row.lane } : null;
}

/** Draws what is in sight. */
export function draw(canvas, { rows, size, from, span, scrollTop, now, only }) {
  const { width, height } = size;
  if (canvas === null || width === 0 || height === 0) return;
  const scale = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const ink = canvas.getContext("2d");
  ink.setTransform(scale, 0, 0, scale, 0, 0);
  const colours = coloursOf(canvas);
  ink.fillStyle = colours.surface;
  ink.fillRect(0, 0, width, height);
  const gutter = gutterOf(width);
  const xOf = (time) => gutter + ((time - from) / span) * (width - gutter);
  const shown = rows.filter((row) => row.y + row.px > scrollTop + AXIS_PX && row.y < scrollTop + height);

  grid(ink, { from, span, width, height, gutter, xOf, nowX: xOf(now), colours });
  ink.save();
  ink.beginPath();
  ink.rect(gutter, AXIS_PX, width - gutter, height - AXIS_PX);
  ink.clip();
  for (const row of shown) lane(ink, row, { y: row.y - scrollTop, from, span, width, now, xOf, only, colours });
  nowLine(ink, xOf(now), height, colours);
  ink.restore();
  nowLabel(ink, xOf(now), { width, gutter, colours });
  names(ink, shown, { scrollTop, gutter, height, colours });
}

function coloursOf(canvas) {
  const style = getComputedStyle(canvas);
  const names_ = ["surface", "sunken", "line", "line-strong", "text", "muted", "failed", "accent"];
  const colours = Object.fromEntries(names_.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  return { ...colours, font: style.fontFamily };
}

function grid(ink, { from, span, width, height, gutter, xOf, nowX, colours }) {
  const { step, marks } = ticks(from, span, Math.max(2, (width - gutter) / 110));
  ink.font = `12px ${colours.font}`;
  ink.textBaseline = "middle";
  ink.textAlign = "center";
  for (const at of marks) {
    const x = Math.round(xOf(at)) + 0.5;
    ink.strokeStyle = colours.line;
    ink.beginPath();
    ink.moveTo(x, AXIS_PX - 6);
    ink.lineTo(x, height);
    ink.stroke();
    if (x < gutter + 24 || x > width - 30 || Math.abs(x - nowX) < NOW_PX) continue;
    ink.fillStyle = colours.muted;
    ink.fillText(timeOf(at, step), x, AXIS_PX / 2 - 2);
  }
  ink.strokeStyle = colours["line-strong"];
  ink.beginPath();
  ink.moveTo(gutter, AXIS_PX - 0.5);
  ink.lineTo(width, AXIS_PX - 0.5);
  ink.stroke();
}

function timeOf(at, step) {
  const text = timeOfDay(at);
  if (step < 1000) return `${text.slice(3)}.${Math.floor((at % 1000) / 100)}`;
  return step < 60_000 ? text : text.slice(0, 5);
}

function lane(ink, { bars, px }, { y, from, span, width, now, xOf, only, colours }) {
  const tall = px - BETWEEN_PX;
  const gutter = gutterOf(width);
  ink.fillStyle = colours.sunken;
  ink.fillRect(0, y + 2, width, tall);
  ink.strokeStyle = colours.line;
  ink.strokeRect(-0.5, y + 2.5, width + 1, tall - 1);
  const seen = bars.filter((bar) => bar.end >= from && bar.start <= from + span);
  // What failed lies above the others, as it may be drawn wider than it was long.
  for (const part of [seen.filter((bar) => !isFailed(bar)), seen.filter(isFailed)]) {
    let lastPx = Number.NEGATIVE_INFINITY;
    for (const bar of part) {
      const right = Math.min(xOf(Math.min(bar.end, Math.max(now, bar.start))), width + 8);
      // A short one that failed lies over what was before it, not over the title of the next.
      const begin = isFailed(bar) ? Math.min(xOf(bar.start), right - FAILED_PX - 1) : xOf(bar.start);
      const left = Math.max(begin, gutter - 8);
      const wide = Math.max(right - left - 1, 1);
      // Of many that end at one pixel, or are within it, the first is drawn.
      if (Math.floor(left) === lastPx && (wide <= 1 || isFailed(bar))) continue;
      lastPx = Math.floor(left);
      ink.globalAlpha = only !== null && only !== bar.family ? 0.16 : 1;
      shape(ink, bar, { left, y: y + 2, wide, tall, gutter, colours });
    }
  }
  ink.globalAlpha = 1;
}

const isFailed = ({ status }) => status === "failed";

const SHAPES = {
  /** Full, up to the line of now. */
  running(ink, { left, y, wide, tall, colour }) {
    fill(ink, left, y, wide + 1, tall, colour, [3, 0, 0, 3]);
  },
  /** Full, with a red edge, and a cross at its end. */
  failed(ink, { left, y, wide, tall, colour, colours }) {
    fill(ink, left, y, wide, tall, colour);
    ink.strokeStyle = colours.failed;
    ink.lineWidth = 2;
    ink.strokeRect(left + 1, y + 1, wide - 2, tall - 2);
    cross(ink, left + wide - FAILED_PX / 2, y + tall / 2, colours);
    ink.lineWidth = 1;
  },
  /** Hatched. */
  released(ink, { left, y, wide, tall, colour }) {
    ink.save();
    ink.beginPath();
    ink.rect(left, y, wide, tall);
    ink.clip();
    ink.globalAlpha *= 0.3;
    fill(ink, left, y, wide, tall, colour);
    ink.globalAlpha /= 0.3;
    ink.strokeStyle = colour;
    for (let x = left - tall; x < left + wide; x += 6) {
      ink.beginPath();
      ink.moveTo(x, y + tall);
      ink.lineTo(x + tall, y);
      ink.stroke();
    }
    ink.restore();
  },
  /** Hollow. */
  cancelled(ink, { left, y, wide, tall, colour }) {
    ink.strokeStyle = colour;
    ink.setLineDash([3, 2]);
    ink.strokeRect(left + 0.5, y + 0.5, Math.max(wide - 1, 1), tall - 1);
    ink.setLineDash([]);
  },
  completed(ink, { left, y, wide, tall, colour }) {
    fill(ink, left, y, wide, tall, colour);
  },
};

function shape(ink, bar, { left, y, wide, tall, gutter, colours }) {
  const colour = colourOf(bar.family);
  SHAPES[bar.status](ink, { left, y, wide, tall, colour, colours });
  const x = Math.max(left, gutter) + 6;
  const room = left + wide - x - (bar.status === "failed" ? 16 : 6);
  if (room < TEXT_PX || bar.status === "cancelled" || bar.status === "released") return;
  ink.fillStyle = toneOf(bar.family).light > 0.65 ? "#0b0e13" : "#fff";
  ink.font = `600 11px ${colours.font}`;
  ink.textAlign = "left";
  ink.textBaseline = "middle";
  ink.fillText(fitting(ink, titleOf(bar), room), x, y + tall / 2 + 0.5);
}

/** The name of a task, its Python call, or the first line of its command. */
const titleOf = ({ attempt }) => visible(attempt.name ?? attempt.call ?? attempt.command.trim().split("\n", 1)[0]);

function fill(ink, left, y, wide, tall, colour, corners = 3) {
  ink.fillStyle = colour;
  if (wide < 4) {
    ink.fillRect(left, y, wide, tall);
    return;
  }
  ink.beginPath();
  ink.roundRect(left, y, wide, tall, corners);
  ink.fill();
}

function cross(ink, x, y, colours) {
  for (const [style, thick] of [[colours.surface, 4], [colours.failed, 2]]) {
    ink.strokeStyle = style;
    ink.lineWidth = thick;
    ink.beginPath();
    ink.moveTo(x - 3.5, y - 3.5);
    ink.lineTo(x + 3.5, y + 3.5);
    ink.moveTo(x + 3.5, y - 3.5);
    ink.lineTo(x - 3.5, y + 3.5);
    ink.stroke();
  }
}

function nowLine(ink, x, height, colours) {
  ink.fillStyle = colours.accent;
  ink.fillRect(Math.round(x) - 1, AXIS_PX - 6, 2, height);
}

function nowLabel(ink, x, { width, gutter, colours }) {
  if (x < gutter || x > width) return;
  ink.font = `600 12px ${colours.font}`;
  ink.textAlign = x > width - 18 ? "right" : "center";
  ink.fillStyle = colours.accent;
  ink.fillText("now", Math.min(x, width - 4), AXIS_PX / 2 - 2);
}

function names(ink, rows, { scrollTop, gutter, height, colours }) {
  ink.save();
  ink.beginPath();
  ink.rect(0, AXIS_PX, gutter, height - AXIS_PX);
  ink.clip();
  ink.fillStyle = colours.surface;
  ink.fillRect(0, 0, gutter, height);
  ink.textBaseline = "middle";
  for (const { node, lane: number, y, px } of rows) {
    const middle = y - scrollTop + 2 + (px - BETWEEN_PX) / 2;
    ink.font = `11px ${colours.font}`;
    ink.fillStyle = colours.muted;
    ink.textAlign = "right";
    ink.fillText(String(number + 1), gutter - 8, middle);
    if (number !== 0) continue;
    ink.font = `600 12.5px ${colours.font}`;
    ink.fillStyle = colours.text;
    ink.textAlign = "left";
    ink.fillText(fitting(ink, node, gutter - NAME_PX - 26), NAME_PX, middle);
  }
  ink.restore();
}

/** A text, cut where it is too long. */
function fitting(ink, text, px) {
  let shown = text;
  for (let wide = ink.measureText(shown).width; wide > px && shown.length > 1; wide = ink.measureText(shown).width) {
    const fit = Math.min(shown.length - 2, Math.floor((shown.length * px) / wide));
    shown = `${text.slice(0, Math.max(0, fit))}…`;
  }
  return shown;
}
