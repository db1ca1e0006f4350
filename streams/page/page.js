/**
 * The playground: shows one run at a time, live.
 *
 * Invariants:
 * 1. The work per event is constant, whatever the number of events.
 * 2. The page is painted once per animation frame, from bounded state.
 * 3. Whatever a stream contains is shown as text, never as HTML.
 * 4. The address names the form's source and fields, and the run that is shown, if it is theirs.
 */

import { append, Parts, partsOf } from "./answer.js";
import { drawChart } from "./chart.js";
import { element, fill, showErrors, showFields, texts, values } from "./form.js";
import { forget, remember, remembered } from "./history.js";
import { fetchWithKey, hasKey } from "./key.js";
import { linkOf, readLink } from "./location.js";
import { Pace } from "./pace.js";
import { Plain } from "./plain.js";
import { samples } from "./samples.js";
import { ask, errorOf, stopRun, viaEventSource, viaFetch } from "./transports.js";

const MAX_ROWS = 200;
const MAX_CELL = 300; // characters of an event's data in the list
const MAX_VALUE = 100_000; // characters of the latest value
const PAINT_INTERVAL = 100; // milliseconds, while the chart moves without events
const CHART_INTERVAL = 50; // milliseconds
const SILENCE = 3_000; // milliseconds without an event, from which on the page says so
const NO_HEARTBEAT = 40_000; // milliseconds; a server sends one each 15 s, unless it is told otherwise
const BUSY_CHECK = 50; // milliseconds
const BUSY = 100; // milliseconds that a timer is late

/** What the fields of a source begin with: an answer that is long enough to press Drop. */
const EXAMPLES = { tokens: { prompt: "Why does a stream need a run?", tokens_per_second: "7" } };

const NO_SOURCES =
  "This app has no sources yet. Write an async generator, decorate it with @source, and give it to the app: Streams([yours]), or STREAMS_SOURCES=package.module:yours.";

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
  "no sources": "no sources",
};

const byId = (id) => document.getElementById(id);
const form = byId("form");
const encoder = new TextEncoder();
const formatted = (number) => number.toLocaleString("en");

let sources = [];
let plainSources = []; // their names
let roundTrip = 0;
let view = newView("", {}, {});
let connection;
const plain = new Plain(schedulePaint);

/** What the page shows of one run. */
function newView(url, body, parameters) {
  return {
    url,
    body, // of the request
    parameters, // of the run, as far as they are known
    form: undefined, // from which it was started
    isPlain: false, // whether the plain answer is shown beside it
    isUnknown: false, // whether its parameters are not known
    state: "idle",
    reason: undefined, // of the state "waiting"
    run: "",
    pace: new Pace(performance.now(), roundTrip),
    bytes: 0,
    firstEvent: undefined, // milliseconds
    connections: 0,
    response: undefined,
    lost: 0, // events that the server had dropped, as in a `gap`
    resumedAfter: 0, // pieces
    lastEventId: "",
    newRows: [], // events that are not in the list yet
    tokens: { count: 0, first: undefined, last: undefined },
    newParts: new Parts(), // of the answer
    latest: undefined,
    status: undefined,
  };
}

// ---- the run

/** Starts what the form says. */
function startForm() {
  const parameters = values(byId("parameters"));
  const asked = formNow();
  show(newView(`streams/${asked.source}`, parameters, parameters));
  view.form = asked;
  view.isPlain = plainSources.includes(asked.source);
  goTo(linkOf(asked));
  if (view.isPlain) plain.start(asked.source, parameters);
  connect();
  if (matchMedia("(min-width: 62rem)").matches) return;
  // On a phone the form is above the answers. What a later paint adds to them would move the page.
  paint();
  document.querySelector(".panes").scrollIntoView();
}

/** Shows a run from its start. `isUnknown` if the form is not what started it. */
function attach(run, isUnknown) {
  show(newView(`runs/${encodeURIComponent(run)}`, {}, isUnknown ? {} : values(byId("parameters"))));
  view.isUnknown = isUnknown;
  view.run = run;
  showCode();
  connect();
}

/** Shows another view, which is not connected. */
function show(next) {
  connection?.close();
  connection = undefined;
  plain.close();
  view = next;
  for (const id of ["rows", "value", "plain-value", "response", "problem"]) byId(id).replaceChildren();
  byId("run").textContent = "–";
  showErrors(byId("parameters"), []);
  schedulePaint();
}

function connect() {
  connection?.close();
  connection = undefined;
  const open = transport() === "EventSource" ? viaEventSource : viaFetch;
  let opened;
  const ifCurrent = (call) => (...args) => opened === connection && call(...args);
  const listener = {
    state: ifCurrent(onState),
    event: ifCurrent(onEvent),
    end: ifCurrent(onEnd),
  };
  connection = opened = open(view.url, view.body, view.lastEventId, listener);
  setState("connecting");
}

function reconnect() {
  connect();
  if (view.isPlain) plain.reconnect();
}

async function stop() {
  plain.close("stopped");
  if (connection) return connection.stop();
  await stopRun(view.run);
  setState("cancelled");
}

function drop() {
  connection.close();
  connection = undefined;
  plain.close("lost");
  setState("dropped");
}

function onState(state, reason) {
  if (state === "open" && view.connections++) {
    view.pace.reconnected(performance.now());
    view.resumedAfter = view.tokens.count;
  }
  showResponse(connection?.response);
  setState(state, reason);
}

function onEvent({ type, id, text, data }) {
  const now = arrivalTime();
  const gap = view.pace.arrived(now);
  view.lastEventId = id;
  const frame = `id: ${id}\n${type === "message" ? "" : `event: ${type}\n`}data: ${text}\n\n`;
  view.bytes += encoder.encode(frame).length;
  view.newRows.push({ id, type, gap, text: text.length > MAX_CELL ? `${text.slice(0, MAX_CELL)}…` : text });
  if (view.newRows.length > MAX_ROWS) view.newRows.shift();
  if (type === "start") onStart(data);
  else if (type === "end") view.status = data.status;
  else if (type === "gap") view.lost += data.missed ?? 1;
  else {
    view.firstEvent ??= now - view.pace.began;
    if (typeof data?.message?.content === "string") onPiece(partsOf(data.message), now);
    else view.latest = { data };
  }
  schedulePaint();
}

function onPiece(parts, now) {
  if (!parts.length) return;
  view.newParts.add(parts);
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
  if (view.form) {
    const link = linkOf(view.form, run);
    history.replaceState(null, "", link);
    remember(run, link);
    showRuns();
  } else if (source !== byId("source").value) {
    [view.isUnknown, view.parameters] = [true, {}];
    if (sources.some(({ name }) => name === source)) selectSource(source);
    else showCode();
  }
  const href = view.form ? linkOf(view.form, run) : view.isUnknown ? `#${run}` : linkOf(formNow(), run);
  byId("run").replaceChildren(
    element("a", { href, target: "_blank", rel: "noopener", title: "Open this run in another tab", textContent: run }),
  );
}

function onEnd(error) {
  showResponse(connection?.response);
  connection = undefined;
  setState(error && !view.status ? "refused" : view.status ?? "completed", error?.problem);
  if (!error) return;
  const { status, errors } = error.problem ?? {};
  if (view.url.startsWith("runs/") && [404, 410].includes(status)) {
    forget(view.run);
    showRuns();
  }
  if (!(errors && showErrors(byId("parameters"), errors))) showProblem(error);
}

function showProblem({ name, message, problem }) {
  const kind = problem ? problem.status : name === "Error" ? "" : name;
  byId("problem").textContent = kind ? `${kind}: ${message}` : message;
}

/** The status and the headers of the newest response. EventSource shows neither. */
function showResponse(response) {
  if (!response || response === view.response || response.type === "error") return;
  view.response = response;
  const headers = [...response.headers].map(([name, value]) => `${name}: ${value}`);
  byId("response").textContent = [`${response.status} ${response.statusText}`.trim(), ...headers].join("\n");
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
  byId("silence").textContent = silence();
  paintValue();
  paintPlain();
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

/** How long nothing came. It is not announced, as it changes each second. */
function silence() {
  const now = performance.now();
  const [quiet, heard] = [now - view.pace.last, connection?.heard];
  const seconds = (ms) => `${formatted(Math.floor(ms / 1000))} s`;
  if (view.state !== "open" || quiet < SILENCE) return "";
  const text = `silent for ${seconds(quiet)}`;
  if (heard === undefined) return `${text}; EventSource does not show heartbeats`;
  if (now - heard > NO_HEARTBEAT) return `${text}, without a heartbeat for ${seconds(now - heard)}: is the connection lost?`;
  return heard > view.pace.last + 500 ? `${text}, heartbeats come` : text;
}

/** The state in words. EventSource does not tell why and how long it waits. */
function stateText() {
  const { state, reason, connections } = view;
  if (state === "refused" && reason?.status) return `refused with status ${reason.status}; the form shows the error`;
  if (state !== "waiting" || !reason) return STATES[state];
  const { status, wait } = reason;
  const again = `${connections ? "reconnecting" : "trying again"} in ${formatted(Math.ceil(wait / 1000))} s`;
  if (!status) return `${navigator.onLine ? "connection lost" : "this device is offline"}, ${again}`;
  const cause = [429, 503].includes(status) ? "is busy" : [502, 504].includes(status) ? "cannot be reached" : "failed";
  return `${again}: the server ${cause} (${status})`;
}

function paintValue() {
  const box = byId("value");
  const { parameters, pace, tokens, isPlain } = view;
  byId("prompt").hidden = !parameters.prompt;
  byId("prompt").textContent = parameters.prompt;
  byId("note").hidden = !isPlain;
  byId("note").textContent = isPlain ? runNote() : "";
  byId("note").dataset.state = view.state;
  byId("speed").hidden = tokens.count < 2;
  const seconds = (tokens.last - tokens.first) / 1000;
  const rate = seconds ? `, ${((tokens.count - 1) / seconds).toFixed(1)} per second` : ""; // none if all came at once
  const wait = formatted(Math.round(tokens.first - pace.began));
  byId("speed").textContent = `${formatted(tokens.count)} pieces${rate}, the first after ${wait} ms`;
  if (isPlain) byId("value-title").textContent = "Streams";
  else if (!view.newParts.isEmpty) byId("value-title").textContent = "Answer";
  else if (view.latest || !tokens.count) byId("value-title").textContent = "Latest value";
  if (!view.newParts.isEmpty) {
    if (!box.firstChild?.dataset?.kind) box.replaceChildren();
    followEnd(box, () => append(box, view.newParts.take()));
  } else if (view.latest) {
    box.replaceChildren(...valueNodes(view.latest.data));
  }
  view.latest = undefined;
}

/** What became of the answer, beside the plain one. */
function runNote() {
  const { state, tokens, connections, resumedAfter, lost } = view;
  const count = `${formatted(tokens.count)} pieces`;
  if (state === "dropped") return `dropped after ${count}; the run continues`;
  if (state === "waiting" && tokens.count) return `connection lost after ${count}; it will continue from there`;
  if (lost) return `${count}; ${formatted(lost)} events were no longer retained`;
  if (connections > 1 && ["open", "completed"].includes(state))
    return `${state === "open" ? "continued" : "complete, continued"} after piece ${formatted(resumedAfter)}: nothing lost, nothing twice`;
  if (!tokens.count) return state === "idle" ? "" : stateText();
  return state === "completed" ? `complete: ${count}` : count;
}

function paintPlain() {
  byId("plain").hidden = !view.isPlain;
  if (view.isPlain) plain.paint(byId("plain-value"), byId("plain-note"), followEnd);
}

/** Large type for an object with a single scalar member, JSON for everything else. */
function valueNodes(data) {
  const members = Object.entries(Object(data));
  const [[name, value] = []] = members;
  if (members.length !== 1 || typeof value === "object") {
    const text = JSON.stringify(data, null, 2);
    return [text.length > MAX_VALUE ? `${text.slice(0, MAX_VALUE)}…` : text];
  }
  return [element("small", { textContent: name }), element("output", { textContent: value })];
}

function row({ id, type, gap, text }) {
  const node = element("tr", { className: ["start", "end", "gap"].includes(type) ? "control" : "" });
  const cells = [id.split(".").at(-1), type, gap >= 0 ? gap.toFixed(gap < 10 ? 1 : 0) : ""];
  node.append(...cells.map((textContent) => element("td", { textContent })), element("td", {}, unbroken(text)));
  node.firstChild.title = id;
  return node;
}

/** A text whose lines do not end within a number. */
function unbroken(text) {
  const parts = text.split(/(-?\d[\d.,]*)/);
  return parts.map((part, n) => (n % 2 ? element("span", { className: "number", textContent: part }) : part));
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
    start: sources.length > 0,
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

const transport = () => document.querySelector("[name=transport]:checked").value;

const formNow = () => ({ source: byId("source").value, transport: transport(), fields: texts(byId("parameters")) });

function selectSource(name, fields) {
  const source = sources.find((each) => each.name === name);
  byId("source").value = name;
  byId("description").textContent = source.description;
  showFields(byId("parameters"), source.parameters);
  fill(byId("parameters"), fields ?? {});
  showCode();
  if (view.state === "idle") view.isPlain = plainSources.includes(name);
  schedulePaint();
}

/** Selects a source and fills in its example. A link does not use this: it has values of its own. */
const selectExample = (name) => selectSource(name, EXAMPLES[name]);

/** Shows what the address says: a form, and perhaps a run. */
function openLink() {
  const own = remembered().find(({ run }) => run === location.hash.slice(1));
  const link = readLink(location.search || !own ? location : new URL(own.link, document.baseURI));
  const isKnown = sources.some(({ name }) => name === link.source);
  const first = sources.find(({ name }) => name in EXAMPLES) ?? sources[0];
  const chosen = hasKey() ? "fetch" : link.transport;
  document.querySelector(`[name=transport][value=${chosen}]`).checked = true;
  if (isKnown) selectSource(link.source, link.fields);
  else if (first) selectExample(first.name);
  if (link.source && !isKnown) byId("problem").textContent = `This app has no source ${link.source}.`;
  if (link.run) attach(link.run, !isKnown);
}

/** Makes an entry in the browser's history, unless the address stays the same. */
function goTo(link) {
  if (link === location.search + location.hash) return;
  history.pushState(null, "", link);
}

/** The address follows the form. That of a run stays in the browser's history. */
function onChange() {
  if (location.hash) goTo(linkOf(formNow()));
  else history.replaceState(null, "", linkOf(formNow()));
}

function showCode() {
  const isOfRun = view.isUnknown && view.run;
  const path = isOfRun ? `runs/${encodeURIComponent(view.run)}` : `streams/${byId("source").value}`;
  const code = samples(new URL(path, document.baseURI), isOfRun ? {} : values(byId("parameters")), hasKey());
  byId("code-of").textContent = isOfRun ? "reads this run" : "";
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

function showRuns() {
  const items = remembered().map(({ run, link, time }) => {
    const { source, fields } = readLink(new URL(link, document.baseURI));
    const given = Object.entries(fields).map(([name, text]) => `${name}=${text}`).join(" ");
    const when = new Date(time).toLocaleTimeString("en", { hour12: false });
    return element("li", {}, [
      element("a", { href: link, textContent: source, title: run }),
      element("small", { textContent: `${when} ${given}` }),
    ]);
  });
  byId("own-runs").replaceChildren(...(items.length ? items : [element("li", { textContent: "None yet." })]));
  const shared = sources.filter((source) => source.shared || source.topic);
  byId("joined").hidden = shared.length === 0;
  byId("shared").replaceChildren(
    ...shared.map(({ name, description }) =>
      element("li", {}, [
        element("a", { href: `?${new URLSearchParams({ source: name })}`, textContent: name }),
        element("small", { textContent: description }),
      ]),
    ),
  );
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

function onClick(id, action) {
  byId(id).addEventListener("click", () => byId(id).getAttribute("aria-disabled") === "true" || action());
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (sources.length) startForm();
});
byId("parameters").addEventListener("keydown", (event) => {
  // As in a chat, Enter sends the form and Shift+Enter inserts a line break.
  if (event.key !== "Enter" || event.shiftKey || event.target.tagName !== "TEXTAREA") return;
  event.preventDefault();
  byId("start").click();
});
form.addEventListener("input", () => {
  view.isUnknown = false;
  showCode();
});
form.addEventListener("change", onChange);
byId("source").addEventListener("change", () => selectExample(byId("source").value));
byId("languages").addEventListener("change", showCode);
byId("copy").addEventListener("click", copyCode);
onClick("stop", () => stop().catch(showProblem));
onClick("drop", drop);
onClick("reconnect", reconnect);
addEventListener("popstate", () => {
  if (location.hash && location.hash.slice(1) === view.run) return;
  show(newView("", {}, {}));
  openLink();
});
addEventListener("storage", showRuns);
addEventListener("resize", schedulePaint);

let checked = performance.now();
setInterval(() => {
  const now = performance.now();
  if (now - checked > BUSY_CHECK + BUSY) view.pace.busy(checked, now);
  checked = now;
}, BUSY_CHECK);

try {
  const [listed, about] = await Promise.all([fetchWithKey("streams"), ask("page/about.json")]);
  if (!listed.ok) throw await errorOf(listed);
  [{ sources }, { plain: plainSources }] = await Promise.all([listed.json(), about.json()]);
} catch (error) {
  showProblem(error);
}
document.querySelector("[value=EventSource]").disabled = hasKey();
byId("no-event-source").hidden = !hasKey();
const timings = performance.getEntriesByType("resource");
roundTrip = Math.min(...timings.map(({ requestStart, responseStart }) => responseStart - requestStart));
byId("http").textContent = timings.at(-1)?.nextHopProtocol.replace(/^http\/|^h/, "") ?? "–";
byId("source").append(...sources.map(({ name }) => new Option(name)));
if (!sources.length && !byId("problem").textContent) {
  byId("description").textContent = NO_SOURCES;
  setState("no sources");
}
showRuns();
openLink();
schedulePaint();
