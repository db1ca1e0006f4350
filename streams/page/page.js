/**
 * The playground: one run at a time, shown as it arrives.
 *
 * The law of this file: an event costs what one number costs; whatever is drawn is drawn once a
 * frame, from bounded state, and what a stream says is only ever text.
 */

import { drawChart } from "./chart.js";
import { element, fill, showFaults, showFields, values } from "./form.js";
import { Pace } from "./pace.js";
import { samples } from "./samples.js";
import { viaEventSource, viaFetch } from "./transports.js";

const ROWS = 200;
const TEXT = 100_000; // characters of the growing text
const CELL = 300; // characters of one event's data in the list

const STATES = {
  idle: "idle",
  connecting: "connecting",
  open: "open",
  waiting: "connection lost, back in a moment",
  dropped: "dropped by you, the run goes on",
  completed: "completed",
  cancelled: "stopped",
  failed: "failed",
  refused: "refused",
};

const at = (id) => document.getElementById(id);
const form = at("form");
const text = new TextEncoder();
const count = (number) => number.toLocaleString("en");

let sources = [];
let roundTrip = 0;
let view = fresh("", {});
let connection;

/** What is shown of one run. */
function fresh(url, given) {
  return {
    url,
    given,
    state: "idle",
    run: "",
    pace: new Pace(performance.now(), roundTrip),
    bytes: 0,
    first: undefined,
    opened: 0,
    lastEventId: "",
    queue: [], // events that are not in the list yet
    grown: "", // text that is not on the page yet
    latest: undefined,
    status: undefined,
  };
}

// ---- the run

function begin(url, given) {
  view = fresh(url, given);
  at("rows").replaceChildren();
  at("value").replaceChildren();
  at("problem").textContent = "";
  showFaults(at("parameters"), []);
  connect();
}

function connect() {
  connection?.close();
  connection = undefined;
  const isEventSource = form.elements.transport.value === "EventSource";
  const open = isEventSource ? viaEventSource : viaFetch;
  const whenCurrent = (act) => (...args) => mine === connection && act(...args);
  let mine;
  const on = { state: stateChanged, event: eventArrived, end: ended };
  for (const name of Object.keys(on)) on[name] = whenCurrent(on[name]);
  connection = mine = open(view.url, view.given, view.lastEventId, on);
  become("connecting");
}

async function stop() {
  if (connection) return connection.stop();
  await fetch(`runs/${view.run}`, { method: "DELETE" });
  become("cancelled");
}

function drop() {
  connection.close();
  connection = undefined;
  become("dropped");
}

function stateChanged(state) {
  if (state === "open" && view.opened++) view.pace.reconnected(performance.now());
  become(state);
}

function eventArrived({ type, id, text: raw, data }) {
  const now = arrival();
  const gap = view.pace.arrived(now);
  view.lastEventId = id;
  view.bytes += text.encode(`id: ${id}\n${type === "message" ? "" : `event: ${type}\n`}data: ${raw}\n\n`).length;
  view.queue.push({ id, type, gap, raw });
  if (view.queue.length > ROWS) view.queue.shift();
  if (type === "start") started(data);
  else if (type === "end") view.status = data.status;
  else if (type !== "gap") {
    view.first ??= now - view.pace.began;
    if (typeof data?.message?.content === "string") view.grown += data.message.content;
    else view.latest = { data };
  }
  paintSoon();
}

let instant;
const task = new MessageChannel();
task.port1.onmessage = () => (instant = undefined);

/** The time, one for all events that were read together: handling them takes time as well. */
function arrival() {
  if (instant === undefined) task.port2.postMessage(undefined);
  return (instant ??= performance.now());
}

function started({ run, source }) {
  view.run = run;
  if (source !== at("source").value && sources.some(({ name }) => name === source)) choose(source);
  const kept = { source, given: view.given, transport: form.elements.transport.value };
  if (view.url.startsWith("streams/")) history.replaceState(kept, "", `#${run}`);
  at("run").replaceChildren(
    element("a", { href: `#${run}`, target: "_blank", rel: "noopener", title: "Watch this run in another tab", textContent: run }),
  );
}

function ended(error) {
  connection = undefined;
  become(error && !view.status ? "refused" : view.status ?? "completed");
  if (!error) return;
  const hasFields = error.problem?.errors && showFaults(at("parameters"), error.problem.errors);
  if (!hasFields) at("problem").textContent = error.name === "Error" ? error.message : `${error.name}: ${error.message}`;
}

function become(state) {
  view.state = state;
  paintSoon();
}

// ---- painting

let isPainting = false;
let nextPaint; // of a chart that moves on without events
let drawn = 0; // when the chart was

function paintSoon() {
  if (isPainting) return;
  isPainting = true;
  requestAnimationFrame(paint);
}

function paint() {
  isPainting = false;
  const { pace, queue, state } = view;
  at("state").textContent = STATES[state];
  at("state").dataset.state = state;
  at("events").textContent = count(pace.events);
  at("bytes").textContent = count(view.bytes);
  at("first").textContent = view.first === undefined ? "–" : `${count(Math.round(view.first))} ms`;
  at("reconnects").textContent = count(Math.max(0, view.opened - 1));
  if (!view.run) at("run").textContent = "–";
  paintValue();
  keepingUp(at("log"), () => at("rows").append(...queue.splice(0).map(row)));
  const rows = at("rows").children;
  while (rows.length > ROWS) rows[0].remove();
  at("held").textContent = pace.events > ROWS ? `the newest ${ROWS} of ${count(pace.events)}` : "";
  paintVerdict(pace.verdict());
  paintButtons();
  const isMoving = ["connecting", "open", "waiting", "dropped"].includes(state);
  const now = performance.now();
  if (!isMoving || now - drawn > 50) drawChart(at("chart"), pace, isMoving ? (drawn = now) : pace.last);
  clearTimeout(nextPaint);
  if (isMoving) nextPaint = setTimeout(paintSoon, 100);
}

function paintValue() {
  const place = at("value");
  if (view.grown) {
    at("value-title").textContent = "Text";
    if (!place.firstChild?.data) place.replaceChildren("");
    keepingUp(place, () => place.firstChild.appendData(view.grown));
    view.grown = "";
    place.firstChild.deleteData(0, Math.max(0, place.firstChild.length - TEXT));
  } else if (view.latest) {
    at("value-title").textContent = "Latest value";
    place.replaceChildren(...shown(view.latest.data));
  }
  view.latest = undefined;
}

/** An object with one plain member as a figure, all else as JSON. */
function shown(data) {
  const members = Object.entries(Object(data));
  const [[name, value] = []] = members;
  if (members.length !== 1 || typeof value === "object") return [JSON.stringify(data, null, 2)];
  return [element("small", { textContent: name }), element("output", { textContent: value })];
}

function row({ id, type, gap, raw }) {
  const made = element("tr", { className: ["start", "end", "gap"].includes(type) ? "control" : "" });
  const cut = raw.length > CELL ? `${raw.slice(0, CELL)}…` : raw;
  const cells = [id.split(".").at(-1), type, gap >= 0 ? gap.toFixed(gap < 10 ? 1 : 0) : "", cut];
  made.append(...cells.map((textContent) => element("td", { textContent })));
  made.firstChild.title = id;
  return made;
}

function paintVerdict({ kind, text }) {
  const place = at("verdict");
  place.dataset.kind = kind;
  place.querySelector("p").textContent = text;
  place.querySelector("details").hidden = kind !== "held";
}

/** A button that can do nothing says so, and keeps the focus if it had it. */
function paintButtons() {
  const isLive = connection !== undefined;
  const isDropped = view.state === "dropped";
  const can = {
    stop: view.run && (isLive || isDropped),
    drop: isLive,
    reconnect: isDropped || view.state === "waiting",
  };
  for (const [id, may] of Object.entries(can)) at(id).setAttribute("aria-disabled", String(!may));
}

/** Adds to a box that scrolls, and stays at its end if it was there. */
function keepingUp(box, add) {
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  add();
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}

// ---- the form and the code

function choose(name) {
  const source = sources.find((each) => each.name === name);
  at("source").value = name;
  at("description").textContent = source.description;
  showFields(at("parameters"), source.parameters);
  showCode();
}

function showCode() {
  const url = new URL(`streams/${at("source").value}`, document.baseURI);
  const code = samples(url, values(at("parameters")));
  const languages = at("languages");
  if (languages.children.length === 1)
    languages.append(
      ...Object.keys(code).map((value, n) =>
        element("label", {}, [
          element("input", { type: "radio", name: "language", value, defaultChecked: n === 0 }),
          element("span", { textContent: value }),
        ]),
      ),
    );
  at("code").firstElementChild.textContent = code[languages.querySelector(":checked").value];
}

async function copy() {
  const code = at("code").firstElementChild;
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    getSelection().selectAllChildren(code); // plain http from another machine has no clipboard
    document.execCommand("copy");
  }
  at("copy").textContent = "Copied";
  setTimeout(() => (at("copy").textContent = "Copy"), 1500);
}

function attach(run) {
  begin(`runs/${encodeURIComponent(run)}`, {});
}

function when(id, act) {
  at(id).addEventListener("click", () => at(id).getAttribute("aria-disabled") === "true" || act());
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  begin(`streams/${at("source").value}`, values(at("parameters")));
});
form.addEventListener("input", showCode);
at("source").addEventListener("change", () => choose(at("source").value));
at("languages").addEventListener("change", showCode);
at("copy").addEventListener("click", copy);
when("stop", () => stop().catch(({ message }) => (at("problem").textContent = message)));
when("drop", drop);
when("reconnect", connect);
addEventListener("hashchange", () => location.hash.slice(1) !== view.run && attach(location.hash.slice(1)));
addEventListener("resize", paintSoon);

const response = await fetch("streams");
({ sources } = await response.json());
const timings = performance.getEntriesByType("resource");
roundTrip = Math.min(...timings.map(({ requestStart, responseStart }) => responseStart - requestStart));
at("http").textContent = timings.at(-1).nextHopProtocol.replace(/^http\/|^h/, "");
at("source").append(...sources.map(({ name }) => new Option(name)));
const kept = history.state;
if (sources.length) choose(sources.some(({ name }) => name === kept?.source) ? kept.source : sources[0].name);
if (kept?.source === at("source").value) {
  fill(at("parameters"), kept.given);
  form.elements.transport.value = kept.transport;
  showCode();
}
if (location.hash.length > 1) attach(location.hash.slice(1));
else become("idle");
