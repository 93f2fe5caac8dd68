/**
 * The rows of a list of tasks, a few pages at a time: `Pages` for all tasks in a state or
 * of a node, and `Finds` for a search, whose length is unknown until its end.
 *
 *     rows.total.value, rows.at(index), rows.want(first, last), rows.hear(event)
 */

import { get, mayPass } from "../api.js";
import { signal } from "../lib.js";
import { RETRY_MS, Reader } from "../reading.js";
import { PAGE_ROWS, pagesOf } from "./virtual.js";

const PAGES_MAX = 40; //: that are kept
const SETTLE_MS = 60; //: no requests while somebody scrolls
const REFRESH_MS = 1000;
const SEARCH_REFRESH_MS = 5000;
const FINDS_MAX = 5000;
const ROUND_ROWS = 100;

/** What both have in common: updates of rows by events, and when to draw again. */
class Rows {
  total = signal(null); //: null until the first answer
  drawn = signal(0); //: grows when rows have changed
  problem = signal(null);
  /** @type {Map<string, object>} */
  known = new Map();
  #frame = 0;
  #reader = new Reader(() => this.reread());
  #over = new AbortController();

  constructor(refreshMs) {
    this.refreshMs = refreshMs;
  }

  close() {
    this.#over.abort();
    this.#reader.close();
    cancelAnimationFrame(this.#frame);
  }

  /** Updates the row of an event of a task at once, if it is here, and all rows soon. */
  hear(event) {
    const { id, at, array, ...news } = event;
    const row = this.known.get(id);
    if (row !== undefined) {
      if (news.status === "running") row.started_at = at;
      if (array) row.array = { ...row.array, ...given(array) }; // Events do not have all its fields.
      Object.assign(row, given(news), { worker_id: news.worker_id });
      this.draw();
    }
    this.#reader.soon(this.refreshMs);
  }

  refresh() {
    return this.#reader.read();
  }

  draw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.drawn.value += 1;
    });
  }

  /** Requests a page of tasks; null if that failed or nobody waits any more. */
  async ask(query) {
    try {
      const found = await get("/api/v1/tasks", query, { quiet: true, signal: this.#over.signal });
      this.problem.value = null;
      return this.#over.signal.aborted ? null : found;
    } catch (problem) {
      if (this.#over.signal.aborted) return null;
      if (problem.status === undefined) throw problem;
      this.problem.value = problem;
      if (mayPass(problem)) this.#reader.soon(RETRY_MS);
      return null;
    }
  }
}

const given = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null));

export class Pages extends Rows {
  /** @type {Map<number, object[]>} The latest requested page is the last. */
  #pages = new Map();
  /** @type {Map<number, Promise<void>>} Requests on their way, one for each page. */
  #asked = new Map();
  #stale = new Set(); //: pages that were out of sight when the others were read again
  #wanted = [0, 0];
  #settle = 0;

  constructor(query, isNewestFirst) {
    super(REFRESH_MS);
    this.query = query;
    this.isNewestFirst = isNewestFirst;
    this.#begin();
  }

  async #begin() {
    // One answer has the total, and fills a screen, wherever pages begin.
    const newest = this.isNewestFirst ? "true" : "";
    const found = await this.ask({ ...this.query, newest, limit: 2 * PAGE_ROWS });
    if (found === null) return;
    this.#spread(found);
    this.total.value = found.total;
    this.draw();
    this.#load();
  }

  /** Keeps the pages that are complete among the first rows of the list. */
  #spread({ total, tasks }) {
    const rows = this.isNewestFirst ? tasks.toReversed() : tasks;
    const from = this.isNewestFirst ? total - rows.length : 0;
    for (let page = Math.ceil(from / PAGE_ROWS); page * PAGE_ROWS < from + rows.length; page += 1) {
      const first = page * PAGE_ROWS - from;
      const some = rows.slice(first, first + PAGE_ROWS);
      if (some.length === PAGE_ROWS || from + first + some.length === total) this.#keep(page, some);
    }
  }

  at(index) {
    const place = this.isNewestFirst ? this.total.value - 1 - index : index;
    return this.#pages.get(Math.floor(place / PAGE_ROWS))?.[place % PAGE_ROWS];
  }

  /** Returns where a task is among the loaded rows, -1 if it is not. */
  indexOf(id) {
    for (const [page, tasks] of this.#pages) {
      const at = tasks.findIndex((task) => task.id === id);
      const place = page * PAGE_ROWS + at;
      if (at >= 0) return this.isNewestFirst ? this.total.value - 1 - place : place;
    }
    return -1;
  }

  want(first, last) {
    this.#wanted = [first, last];
    clearTimeout(this.#settle);
    this.#settle = setTimeout(() => this.#load(), this.#pages.size === 0 ? 0 : SETTLE_MS);
  }

  async reread() {
    if (this.total.value === null) return this.#begin();
    const before = this.total.value;
    const last = Math.floor(Math.max(0, before - 1) / PAGE_ROWS);
    const pages = new Set(this.#inSight());
    if (this.isNewestFirst || pages.has(last)) pages.add(last);
    if (pages.size === 0) pages.add(0);
    for (const page of this.#pages.keys()) if (!pages.has(page)) this.#stale.add(page);
    await Promise.all([...pages].map((page) => this.#fetch(page)));
    // New tasks may be in new pages.
    if (this.total.value !== before) this.#load();
  }

  #inSight() {
    return pagesOf(...this.#wanted, this.total.value ?? 0, this.isNewestFirst);
  }

  #load() {
    for (const page of this.#inSight()) {
      const many = this.#pages.get(page)?.length ?? 0;
      const isWhole = many >= Math.min(this.total.value - page * PAGE_ROWS, PAGE_ROWS);
      if ((!isWhole || this.#stale.has(page)) && !this.#asked.has(page)) this.#fetch(page);
    }
  }

  /** Requests a page, after an earlier request for it: its answer would be older. */
  #fetch(page) {
    const before = this.#asked.get(page) ?? Promise.resolve();
    const mine = before.then(() => this.#read(page)).finally(() => {
      if (this.#asked.get(page) === mine) this.#asked.delete(page);
    });
    this.#asked.set(page, mine);
    return mine;
  }

  async #read(page) {
    const found = await this.ask({ ...this.query, offset: page * PAGE_ROWS, limit: PAGE_ROWS });
    if (found === null) return;
    this.#keep(page, found.tasks);
    this.total.value = found.total;
    this.draw();
  }

  #keep(page, tasks) {
    this.#forget(page);
    this.#pages.set(page, tasks);
    for (const task of tasks) this.known.set(task.id, task);
    while (this.#pages.size > PAGES_MAX) this.#forget(this.#pages.keys().next().value);
  }

  #forget(page) {
    for (const task of this.#pages.get(page) ?? []) this.known.delete(task.id);
    this.#pages.delete(page);
    this.#stale.delete(page);
  }
}

export class Finds extends Rows {
  left = signal(0); //: number of tasks that were not searched yet
  isOver = signal(false);
  isBusy = signal(false);
  #rows = [];
  #next = null;
  #goal = 0;
  #isStale = false; //: events were missed

  constructor(query, isNewestFirst) {
    super(SEARCH_REFRESH_MS);
    this.query = { ...query, newest: isNewestFirst ? "true" : "" };
    this.isNewestFirst = false; // New rows are appended.
    this.#search();
  }

  at(index) {
    return this.#rows[index];
  }

  indexOf(id) {
    return this.#rows.findIndex((task) => task.id === id);
  }

  want(_, last) {
    if (last >= this.#rows.length - ROUND_ROWS / 2) this.#search();
  }

  refresh() {
    this.#isStale = true;
    return super.refresh();
  }

  /** Reads the page that new rows are in; others stay, unless events were missed. */
  async reread() {
    if (this.total.value === null) return this.#search();
    if (this.#isStale) return this.#again();
    const isAtEnd = !this.query.newest && this.isOver.value;
    const found = await this.ask({ ...this.query, after: isAtEnd ? this.#next : null, limit: PAGE_ROWS });
    if (found === null) return;
    const fresh = found.tasks.filter((task) => !this.known.has(task.id));
    for (const task of found.tasks) Object.assign(this.known.get(task.id) ?? {}, task);
    if (this.query.newest || isAtEnd) this.#take(fresh, !isAtEnd);
    if (isAtEnd) this.#note(found);
    this.draw();
    if (this.#rows.length < this.#goal) this.#search(); // A request may have failed.
  }

  /** Searches until it has found another screen of rows, or has searched all tasks. */
  async #search() {
    this.#goal = Math.min(FINDS_MAX, this.#rows.length + ROUND_ROWS);
    if (this.isBusy.value || this.isOver.value) return;
    this.isBusy.value = true;
    while (!this.isOver.value && this.#rows.length < this.#goal) {
      const found = await this.ask({ ...this.query, after: this.#next, limit: PAGE_ROWS });
      if (found === null) break;
      this.#take(found.tasks, false);
      this.#note(found);
      this.draw();
    }
    this.isBusy.value = false;
    if (this.problem.value === null) this.total.value ??= 0;
    if (this.#isStale && this.problem.value === null) this.#again();
  }

  /** Repeats the search up to the last row shown, and then replaces the rows. */
  async #again() {
    if (this.isBusy.value) return; // Then the search under way comes back to this.
    this.isBusy.value = true;
    this.#isStale = false;
    const rows = [];
    let found = { next: null };
    do {
      found = await this.ask({ ...this.query, after: found.next, limit: PAGE_ROWS });
      rows.push(...(found?.tasks ?? []));
    } while (found !== null && found.next !== null && rows.length < this.#rows.length);
    this.isBusy.value = false;
    this.#isStale ||= found === null;
    if (found === null) return;
    this.#rows = [];
    this.known.clear();
    this.#take(rows, false);
    this.#note(found);
    this.draw();
    if (this.#rows.length < this.#goal) this.#search();
  }

  #note({ next, left }) {
    this.#next = next ?? this.#next; // New tasks come after it.
    this.left.value = left;
    this.isOver.value = next === null || this.#rows.length >= FINDS_MAX;
  }

  #take(tasks, isBefore) {
    const rows = isBefore ? [...tasks, ...this.#rows] : [...this.#rows, ...tasks];
    this.#rows = rows.slice(0, FINDS_MAX);
    for (const task of tasks) this.known.set(task.id, task);
    for (const { id } of rows.slice(FINDS_MAX)) this.known.delete(id);
    this.total.value = this.#rows.length;
  }
}
