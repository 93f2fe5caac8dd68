/**
 * Which rows of a long list are in sight: arithmetic alone, so that it can be tested.
 *
 * No browser scrolls over a million rows, as no element may be so high. So the track is
 * never higher than `TRACK_PX_MAX`: then a wheel still moves row by row, and a drag of the
 * scroll bar goes to the same part of the list.
 */

export const ROW_PX = 40;
export const TRACK_PX_MAX = 8_000_000;
export const PAGE_ROWS = 100;
const SMALL_VIEWS = 2; //: a step of fewer views than that is no drag

/** How high the track of so many rows is. */
export const trackPx = (total) => Math.min(total * ROW_PX, TRACK_PX_MAX);

/** The highest row, as a fraction, that can be the first in sight. */
export const topMax = (total, viewPx) => Math.max(0, total - viewPx / ROW_PX);

const scrollMax = (total, viewPx) => Math.max(0, trackPx(total) - viewPx);
const isWhole = (total) => total * ROW_PX <= TRACK_PX_MAX;

/** Where the scroll bar is for a first row. */
export function scrollOf(top, total, viewPx) {
  if (isWhole(total)) return top * ROW_PX;
  const most = topMax(total, viewPx);
  return most === 0 ? 0 : (top / most) * scrollMax(total, viewPx);
}

/** The first row in sight after the bar went from one place to another. */
export function topAfter(top, beforePx, afterPx, total, viewPx) {
  const most = topMax(total, viewPx);
  if (isWhole(total)) return clamp(afterPx / ROW_PX, 0, most);
  if (afterPx <= 0) return 0;
  if (afterPx >= scrollMax(total, viewPx) - 1) return most;
  const stepPx = afterPx - beforePx;
  if (Math.abs(stepPx) <= SMALL_VIEWS * viewPx) return clamp(top + stepPx / ROW_PX, 0, most);
  return clamp((afterPx / scrollMax(total, viewPx)) * most, 0, most);
}

/** The rows to draw, the last one excluded, and how far they are moved up. */
export function rowsInSight(top, total, viewPx) {
  const first = Math.floor(top);
  const last = Math.min(total, Math.ceil(top + viewPx / ROW_PX) + 1);
  return { first, last, shiftPx: -(top - first) * ROW_PX };
}

/** The first row to show so that one is in sight, moved as little as possible. */
export function topFor(row, top, total, viewPx) {
  const views = Math.max(1, viewPx / ROW_PX);
  if (row < top) return clamp(row, 0, topMax(total, viewPx));
  if (row + 1 > top + views) return clamp(row + 1 - views, 0, topMax(total, viewPx));
  return top;
}

/**
 * The pages of the API, which counts from the oldest task, for rows from the newest.
 * So a page stays what it is while new tasks come.
 */
export function pagesOf(first, last, total, isNewestFirst) {
  if (last <= first || total === 0) return [];
  const from = isNewestFirst ? total - last : first;
  const until = isNewestFirst ? total - 1 - first : last - 1;
  const pages = [];
  for (let page = Math.floor(Math.max(0, from) / PAGE_ROWS); page <= Math.floor(until / PAGE_ROWS); page += 1) {
    pages.push(page);
  }
  return pages;
}

export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
