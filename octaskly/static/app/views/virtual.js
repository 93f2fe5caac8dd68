/**
 * The visible rows of a long list: arithmetic only, so that it can be tested.
 *
 * Browsers limit the height of an element, so a million rows do not fit. The track is at
 * most `TRACK_PX_MAX` high: beyond that, the wheel still moves row by row, and dragging the
 * scroll bar goes to the same part of the list.
 */

export const TRACK_PX_MAX = 8_000_000;
export const PAGE_ROWS = 100;
const SMALL_VIEWS = 2; //: a larger step is a drag

/** A list of rows and a view of a part of it; positions are in fractions of rows. */
export class Track {
  constructor({ total, viewPx, rowPx }) {
    Object.assign(this, { total, viewPx, rowPx });
  }

  /** Height of the track. */
  get px() {
    return Math.min(this.total * this.rowPx, TRACK_PX_MAX);
  }

  /** Number of rows that fill the view. */
  get views() {
    return this.viewPx / this.rowPx;
  }

  /** The last row that can be the first visible one. */
  get topMax() {
    return Math.max(0, this.total - this.views);
  }

  get #scrollMax() {
    return Math.max(0, this.px - this.viewPx);
  }

  get #isWhole() {
    return this.total * this.rowPx <= TRACK_PX_MAX;
  }

  /** Position of the scroll bar for a first row. */
  scrollOf(top) {
    if (this.#isWhole) return top * this.rowPx;
    return this.topMax === 0 ? 0 : (top / this.topMax) * this.#scrollMax;
  }

  /** The first visible row after the scroll bar has moved. */
  topAfter(top, beforePx, afterPx) {
    const most = this.topMax;
    if (this.#isWhole) return clamp(afterPx / this.rowPx, 0, most);
    if (afterPx <= 0) return 0;
    if (afterPx >= this.#scrollMax - 1) return most;
    const stepPx = afterPx - beforePx;
    if (Math.abs(stepPx) <= SMALL_VIEWS * this.viewPx) return clamp(top + stepPx / this.rowPx, 0, most);
    return clamp((afterPx / this.#scrollMax) * most, 0, most);
  }

  /** The rows to draw, without the last one, and their offset. */
  rowsInSight(top) {
    const first = Math.floor(top);
    const last = Math.min(this.total, Math.ceil(top + this.views) + 1);
    return { first, last, shiftPx: -(top - first) * this.rowPx };
  }

  /** The first row to show so that `row` is visible, moved as little as possible. */
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
