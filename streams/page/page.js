/**
 * The playground: shows one run at a time, live.
 *
 * Invariants:
 * 1. The work per event is constant, whatever the number of events.
 * 2. The page is painted once per animation frame, from bounded state.
 * 3. Whatever a stream contains is shown as text, never as HTML.
 */

import { append, partsOf } from "./answer.js";
import { drawChart } from "./chart.js";
import { element, fill, showErrors, showFields, values } from "./form.js";
import { fetchWithKey, hasKey } from "./key.js";
import { Pace } from "./pace.js";
import { samples } from "./samples.js";
import { stopRun, viaEventSource, viaFetch } from "./transports.js";

const MAX_ROWS = 200;
const MAX_CELL = 300; // characters of an event's data in the list
const PAINT_INTERVAL = 100; // milliseconds, while the chart moves without events
const CHART_INTERVAL = 50; // milliseconds

const STATES = {
  idle: "idle",
  connecting: "connecting",
  open: "connected",
  waiting: "connection lost, reconnecting",
  dropped: "connection dropped by you; the run continues",
  completed: "completed",
  cancelled: "cancelled",
  failed: "failed",
  refused: "no stream; the form shows the error",
};

const byId = (id) => document.getElementById(id);
const form = byId("form");
const encoder = new TextEncoder();
const formatted = (number) => number.toLocaleString("en");

let sources = [];
let roundTrip = 0;
let view = newView("", {});
let connection;

/** What the page shows of one run. */
function newView(url, parameters) {
  return {
    url,
    parameters,
    state: "idle",
    reason: undefined, // of the state "waiting"
    run: "",
    pace: new Pace(performance.now(), roundTrip),
    bytes: 0,
    firstEvent: undefined, // milliseconds
    connections: 0,
    lastEventId: "",
    newRows: [], // events that are not in the list yet
    tokens: { count: 0, first: undefined, last: undefined },
    newParts: [], // of the answer, which are not on the page yet
    latest: undefined,
    status: undefined,
  };
}

// ---- the run

function start(url, parameters) {
  view = newView(url, parameters);
  byId("rows").replaceChildren();
  byId("value").replaceChildren();
  byId("problem").textContent = "";
  showErrors(byId("parameters"), []);
  connect();
}

function connect() {
  connection?.close();
  connection = undefined;
  const open = form.elements.transport.value === "EventSource" ? viaEventSource : viaFetch;
  let opened;
  const ifCurrent = (call) => (...args) => opened === connection && call(...args);
  const listener = {
    state: ifCurrent(onState),
    event: ifCurrent(onEvent),
    end: ifCurrent(onEnd),
  };
  connection = opened = open(view.url, view.parameters, view.lastEventId, listener);
  setState("connecting");
}

async function stop() {
  if (connection) return connection.stop();
  await stopRun(view.run);
  setState("cancelled");
}

function drop() {
  connection.close();
  connection = undefined;
  setState("dropped");
}

function onState(state, reason) {
  if (state === "open" && view.connections++) view.pace.reconnected(performance.now());
  setState(state, reason);
}

function onEvent({ type, id, text, data }) {
  const now = arrivalTime();
  const gap = view.pace.arrived(now);
  view.lastEventId = id;
  const frame = `id: ${id}\n${type === "message" ? "" : `event: ${type}\n`}data: ${text}\n\n`;
  view.bytes += encoder.encode(frame).length;
  view.newRows.push({ id, type, gap, text });
  if (view.newRows.length > MAX_ROWS) view.newRows.shift();
  if (type === "start") onStart(data);
  else if (type === "end") view.status = data.status;
  else if (type !== "gap") {
    view.firstEvent ??= now - view.pace.began;
    if (typeof data?.message?.content === "string") onPiece(partsOf(data.message), now);
    else view.latest = { data };
  }
  schedulePaint();
}

function onPiece(parts, now) {
  if (!parts.length) return;
  view.newParts.push(...parts);
  view.tokens.count++;
  view.tokens.first ??= now;
  view.tokens.last = now;
}

let batchTime;
const batchEnd = new MessageChannel();
batchEnd.port1.onmessage = () => (batchTime = undefined);

/** The time. Events from one read get the same time, because handling each of them takes time. */
function arrivalTime() {
  if (batchTime === undefined) batchEnd.port2.postMessage(undefined);
  return (batchTime ??= performance.now());
}

function onStart({ run, source }) {
  view.run = run;
  if (source !== byId("source").value && sources.some(({ name }) => name === source)) selectSource(source);
  const saved = { source, parameters: view.parameters, transport: form.elements.transport.value };
  if (view.url.startsWith("streams/")) history.replaceState(saved, "", `#${run}`);
  byId("run").replaceChildren(
    element("a", { href: `#${run}`, target: "_blank", rel: "noopener", title: "Open this run in another tab", textContent: run }),
  );
}

function onEnd(error) {
  connection = undefined;
  setState(error && !view.status ? "refused" : view.status ?? "completed");
  if (!error) return;
  const isInForm = error.problem?.errors && showErrors(byId("parameters"), error.problem.errors);
  if (!isInForm) byId("problem").textContent = error.name === "Error" ? error.message : `${error.name}: ${error.message}`;
}

function setState(state, reason) {
  [view.state, view.reason] = [state, reason];
  schedulePaint();
}

// ---- painting

let isPaintScheduled = false;
let nextPaint; // timer
let chartDrawn = 0; // time

function schedulePaint() {
  if (isPaintScheduled) return;
  isPaintScheduled = true;
  requestAnimationFrame(paint);
}

function paint() {
  isPaintScheduled = false;
  const { pace, newRows, state } = view;
  const text = stateText();
  // A screen reader announces each change of the text, even to the same one.
  if (byId("state").textContent !== text) byId("state").textContent = text;
  byId("state").dataset.state = state;
  byId("events").textContent = formatted(pace.events);
  byId("bytes").textContent = formatted(view.bytes);
  byId("first").textContent = view.firstEvent === undefined ? "–" : `${formatted(Math.round(view.firstEvent))} ms`;
  byId("reconnects").textContent = formatted(Math.max(0, view.connections - 1));
  if (!view.run) byId("run").textContent = "–";
  paintValue();
  followEnd(byId("log"), () => byId("rows").append(...newRows.splice(0).map(row)));
  const rows = byId("rows").children;
  while (rows.length > MAX_ROWS) rows[0].remove();
  byId("shown").textContent = pace.events > MAX_ROWS ? `the newest ${MAX_ROWS} of ${formatted(pace.events)}` : "";
  paintVerdict(pace.verdict());
  paintButtons();
  const isMoving = ["connecting", "open", "waiting", "dropped"].includes(state);
  const now = performance.now();
  if (!isMoving || now - chartDrawn > CHART_INTERVAL)
    drawChart(byId("chart"), pace, isMoving ? (chartDrawn = now) : pace.last);
  clearTimeout(nextPaint);
  if (isMoving) nextPaint = setTimeout(schedulePaint, PAINT_INTERVAL);
}

/** The state in words. EventSource does not tell why and how long it waits. */
function stateText() {
  const { state, reason, connections } = view;
  if (state !== "waiting" || !reason) return STATES[state];
  const { status, wait } = reason;
  const again = `${connections ? "reconnecting" : "trying again"} in ${formatted(Math.ceil(wait / 1000))} s`;
  if (!status) return `${navigator.onLine ? "connection lost" : "this device is offline"}, ${again}`;
  const cause = [429, 503].includes(status) ? "is busy" : [502, 504].includes(status) ? "cannot be reached" : "failed";
  return `${again}: the server ${cause} (${status})`;
}

function paintValue() {
  const box = byId("value");
  const { parameters, pace, tokens } = view;
  byId("prompt").hidden = !parameters.prompt;
  byId("prompt").textContent = parameters.prompt;
  byId("speed").hidden = tokens.count < 2;
  const seconds = (tokens.last - tokens.first) / 1000;
  const rate = seconds ? `, ${((tokens.count - 1) / seconds).toFixed(1)} per second` : ""; // none if all came at once
  const wait = formatted(Math.round(tokens.first - pace.began));
  byId("speed").textContent = `${formatted(tokens.count)} pieces${rate}, the first after ${wait} ms`;
  if (view.newParts.length) {
    byId("value-title").textContent = "Answer";
    if (!box.firstChild?.dataset?.kind) box.replaceChildren();
    followEnd(box, () => append(box, view.newParts.splice(0)));
  } else if (view.latest) {
    byId("value-title").textContent = "Latest value";
    box.replaceChildren(...valueNodes(view.latest.data));
  }
  view.latest = undefined;
}

/** Large type for an object with a single scalar member, JSON for everything else. */
function valueNodes(data) {
  const members = Object.entries(Object(data));
  const [[name, value] = []] = members;
  if (members.length !== 1 || typeof value === "object") return [JSON.stringify(data, null, 2)];
  return [element("small", { textContent: name }), element("output", { textContent: value })];
}

function row({ id, type, gap, text }) {
  const node = element("tr", { className: ["start", "end", "gap"].includes(type) ? "control" : "" });
  const data = text.length > MAX_CELL ? `${text.slice(0, MAX_CELL)}…` : text;
  const cells = [id.split(".").at(-1), type, gap >= 0 ? gap.toFixed(gap < 10 ? 1 : 0) : "", data];
  node.append(...cells.map((textContent) => element("td", { textContent })));
  node.firstChild.title = id;
  return node;
}

function paintVerdict({ kind, text }) {
  const box = byId("verdict");
  box.dataset.kind = kind;
  box.querySelector("p").textContent = text;
  box.querySelector("details").hidden = kind !== "buffered";
}

/** Sets aria-disabled and not disabled, so that a button keeps the keyboard focus. */
function paintButtons() {
  const isConnected = connection !== undefined;
  const isDropped = view.state === "dropped";
  const enabled = {
    stop: view.run && (isConnected || isDropped),
    drop: isConnected,
    reconnect: isDropped || view.state === "waiting",
  };
  for (const [id, isEnabled] of Object.entries(enabled)) byId(id).setAttribute("aria-disabled", String(!isEnabled));
}

/** Appends to a scrolling box. If the box was scrolled to its end, it stays there. */
function followEnd(box, append) {
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  append();
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}

// ---- the form and the code

function selectSource(name) {
  const source = sources.find((each) => each.name === name);
  byId("source").value = name;
  byId("description").textContent = source.description;
  showFields(byId("parameters"), source.parameters);
  showCode();
}

function showCode() {
  const url = new URL(`streams/${byId("source").value}`, document.baseURI);
  const code = samples(url, values(byId("parameters")), hasKey());
  const languages = byId("languages");
  if (languages.children.length === 1)
    languages.append(
      ...Object.keys(code).map((value, n) =>
        element("label", {}, [
          element("input", { type: "radio", name: "language", value, defaultChecked: n === 0 }),
          element("span", { textContent: value }),
        ]),
      ),
    );
  byId("code").firstElementChild.textContent = code[languages.querySelector(":checked").value];
}

async function copyCode() {
  const code = byId("code").firstElementChild;
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    // Without HTTPS, only a page from localhost has a clipboard object.
    getSelection().selectAllChildren(code);
    document.execCommand("copy");
  }
  byId("copy").textContent = "Copied";
  setTimeout(() => (byId("copy").textContent = "Copy"), 1500);
}

function attach(run) {
  start(`runs/${encodeURIComponent(run)}`, {});
}

function onClick(id, action) {
  byId(id).addEventListener("click", () => byId(id).getAttribute("aria-disabled") === "true" || action());
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  start(`streams/${byId("source").value}`, values(byId("parameters")));
});
form.addEventListener("keydown", (event) => {
  // As in a chat, Enter sends the form and Shift+Enter inserts a line break.
  if (event.key !== "Enter" || event.shiftKey || event.target.tagName !== "TEXTAREA") return;
  event.preventDefault();
  form.requestSubmit();
});
form.addEventListener("input", showCode);
byId("source").addEventListener("change", () => selectSource(byId("source").value));
byId("languages").addEventListener("change", showCode);
byId("copy").addEventListener("click", copyCode);
onClick("stop", () => stop().catch(({ message }) => (byId("problem").textContent = message)));
onClick("drop", drop);
onClick("reconnect", connect);
addEventListener("hashchange", () => location.hash.slice(1) !== view.run && attach(location.hash.slice(1)));
addEventListener("resize", schedulePaint);

const response = await fetchWithKey("streams");
({ sources } = await response.json());
form.querySelector("[value=EventSource]").disabled = hasKey();
byId("no-event-source").hidden = !hasKey();
const timings = performance.getEntriesByType("resource");
roundTrip = Math.min(...timings.map(({ requestStart, responseStart }) => responseStart - requestStart));
byId("http").textContent = timings.at(-1).nextHopProtocol.replace(/^http\/|^h/, "");
byId("source").append(...sources.map(({ name }) => new Option(name)));
const saved = history.state; // of the run that was shown before a reload
if (sources.length) selectSource(sources.some(({ name }) => name === saved?.source) ? saved.source : sources[0].name);
if (saved?.source === byId("source").value) {
  fill(byId("parameters"), saved.parameters);
  form.elements.transport.value = hasKey() ? "fetch" : saved.transport;
  showCode();
}
if (location.hash.length > 1) attach(location.hash.slice(1));
else setState("idle");
