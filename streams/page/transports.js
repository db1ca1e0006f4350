/**
 * Requests to the server, and event streams read with fetch or EventSource behind one interface.
 *
 * Invariants:
 * 1. A connection calls its `listener` until it is closed.
 * 2. Its last call is `end`, with an Error if the stream could not be read or its run failed.
 * 3. Each request of the page is sent here, except the first, which asks for the API key: key.js.
 *
 *     listener.state("connecting" | "open" | "waiting", reason?) // an EventStream's reason
 *     listener.event({ type, data, text, id })
 *     listener.end(error?)
 *
 * A connection's `response` is the newest one, and `heard` the time at which bytes last came. An
 * EventSource shows neither: they are undefined.
 */

import { eventStream } from "./event-stream.js";
import { keyHeaders } from "./key.js";

/** A response with a status from 200 to 299. Otherwise rejects with the server's error. */
export async function ask(path, { body, headers, ...options } = {}) {
  const sent = body && { method: "POST", body: JSON.stringify(body) };
  const type = body && { "Content-Type": "application/json" };
  const all = { ...type, ...headers, ...keyHeaders() };
  const response = await fetch(path, { cache: "no-store", ...sent, ...options, headers: all });
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** Sends the parameters in the body of a POST. Without parameters the request is a GET. */
export function viaFetch(url, parameters, lastEventId, listener) {
  const controller = new AbortController();
  const { signal } = controller;
  const body = Object.keys(parameters).length ? parameters : undefined;
  const stream = eventStream(url, { body, lastEventId, control: true, signal, headers: keyHeaders() });
  stream.addEventListener("statechange", () => stream.state !== "closed" && listener.state(stream.state, stream.reason));
  const read = async () => {
    for await (const event of stream) listener.event(event);
  };
  read().then(() => listener.end(), (error) => signal.aborted || listener.end(error));
  return {
    close: () => controller.abort(),
    stop: () => stream.stop(),
    get response() { return stream.response; },
    get heard() { return stream.heard; },
  };
}

/** Sends the parameters and the last event id in the query: EventSource cannot set a header. */
export function viaEventSource(url, parameters, lastEventId, listener) {
  const resume = lastEventId ? { last_event_id: lastEventId } : {};
  const query = withQuery(url, { ...parameters, ...resume });
  const source = new EventSource(query);
  let run = "";
  listener.state("connecting");
  source.onopen = () => listener.state("open");
  source.onerror = async () => {
    if (source.readyState === EventSource.CONNECTING) listener.state("waiting");
    else listener.end(run ? new Error("The run cannot be resumed. EventSource does not report the reason.") : await refusal(query));
  };
  // EventSource delivers only events whose type has a listener.
  for (const type of ["message", "start", "gap", "end"])
    source.addEventListener(type, ({ data: text, lastEventId: id }) => {
      run = id.split(".")[0];
      const data = parseJson(text);
      listener.event({ type, id, text, data });
      if (type !== "end") return;
      source.close(); // An EventSource that is not closed reconnects after the end.
      listener.end(data.error && Object.assign(new Error(data.error.message), { name: data.error.type }));
    });
  return { close: () => source.close(), stop: () => stopRun(run) };
}

/** Stops a run for all its viewers. Rejects with the server's error. */
export const stopRun = (run) => ask(`runs/${run}`, { method: "DELETE" });

/** The URL with the parameters in its query. A list becomes one parameter per item. */
export function withQuery(url, parameters) {
  const query = new URL(url, document.baseURI);
  for (const [name, value] of Object.entries(parameters))
    for (const item of [value].flat()) query.searchParams.append(name, item);
  return query.href;
}

/** Repeats a refused request, because EventSource does not report the reason. */
async function refusal(url) {
  try {
    const response = await ask(url, { headers: { Accept: "text/event-stream, application/problem+json" } });
    if (response.status === 204) return undefined;
    await response.body?.cancel().catch(() => {});
    return new Error("The connection failed.");
  } catch (error) {
    return error;
  }
}

/** The error of a response that is not a success. */
export async function errorOf(response) {
  const problem = { status: response.status, ...(await response.json().catch(() => null)) };
  return Object.assign(new Error(problem.detail ?? `The server answered ${response.status}.`), { problem });
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
