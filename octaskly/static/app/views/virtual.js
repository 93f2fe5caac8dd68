/**
 * Which rows of a long list are in sight: arithmetic alone, so that it can be tested.
 *
 * No browser scrolls over a million rows, as no element may be so high. So the track is
 * never higher than `TRACK_PX_MAX`: then a wheel still moves row by row, and a drag of the
 * scroll bar goes to the same part of the list.
 */

export const TRACK_PX_MAX = 8_000_000;
export const PAGE_ROWS = 100;
const SMALL_VIEWS = 2; //: a step of fewer views than that is no drag

/** A list of so many rows, of which a view shows a part; rows count as fractions. */
export class Track {
  constructor({ total, viewPx, rowPx }) {
    Object.assign(this, { total, viewPx, rowPx });
  }

  /** How high the track is. */
  get px() {
    return Math.min(this.total * this.rowPx, TRACK_PX_MAX);
  }

  /** How many rows fill the view. */
  get views() {
    return this.viewPx / this.rowPx;
  }

  /** The highest row that can be the first in sight. */
  get topMax() {
    return Math.max(0, this.total - this.views);
  }

  get #scrollMax() {
    return Math.max(0, this.px - this.viewPx);
  }

  get #isWhole() {
    return this.total * this.rowPx <= TRACK_PX_MAX;
  }

  /** Where the scroll bar is for a first row. */
  scrollOf(top) {
    if (this.#isWhole) return top * this.rowPx;
    return this.topMax === 0 ? 0 : (top / this.topMax) * this.#scrollMax;
  }

  /** The first row in sight after the bar went from one place to another. */
  topAfter(top, beforePx, afterPx) {
    const most = this.topMax;
    if (this.#isWhole) return clamp(afterPx / this.rowPx, 0, most);
    if (afterPx <= 0) return 0;
    if (afterPx >= this.#scrollMax - 1) return most;
    const stepPx = afterPx - beforePx;
    if (Math.abs(stepPx) <= SMALL_VIEWS * this.viewPx) return clamp(top + stepPx / this.rowPx, 0, most);
    return clamp((afterPx / this.#scrollMax) * most, 0, most);
  }

  /** The rows to draw, the last one excluded, and how far they are moved up. */
  rowsInSight(top) {
    const first = Math.floor(top);
    const last = Math.min(this.total, Math.ceil(top + this.views) + 1);
    return { first, last, shiftPx: -(top - first) * this.rowPx };
  }

  /** The first row to show so that one is in sight, moved as little as possible. */
  topFor(row, top) {
    const views = Math.max(1, this.views);
    if (row < top) return clamp(row, 0, this.topMax);
    if (row + 1 > top + views) return clamp(row + 1 - views, 0, this.topMax);
    return top;
  }
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
