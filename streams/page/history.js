/**
 * The newest runs that this browser has started. An anonymous client cannot ask the server for them.
 *
 * Invariants:
 * 1. At most MAX_RUNS are kept, each as a link with its source, parameters and id.
 * 2. What is stored is read with distrust: another page of the origin may have written it.
 */

const KEY = `streams.runs ${new URL(".", document.baseURI).pathname}`;
const MAX_RUNS = 20;

/** @returns {{ run: string, link: string, time: number }[]} the newest first */
export function remembered() {
  try {
    const stored = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return stored.filter(isRun).slice(0, MAX_RUNS);
  } catch {
    return []; // Somebody else's value, or a browser that keeps nothing.
  }
}

export function remember(run, link) {
  store([{ run, link, time: Date.now() }, ...without(run)].slice(0, MAX_RUNS));
}

export const forget = (run) => store(without(run));

const without = (run) => remembered().filter((each) => each.run !== run);

const isRun = (each) =>
  typeof each?.run === "string" && typeof each.link === "string" && each.link.startsWith("?") && Number.isFinite(each.time);

function store(runs) {
  try {
    localStorage.setItem(KEY, JSON.stringify(runs));
  } catch {
    // The browser keeps nothing, or its store is full.
  }
}
