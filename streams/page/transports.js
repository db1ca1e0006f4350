/**
 * The two ways a browser reads an event stream, behind one face.
 *
 * The law of this file: a connection tells `on` what happens to it until it is closed, and ends
 * with one `on.end`, which has an Error if that is what it was.
 *
 *     on.state("connecting" | "open" | "waiting")    on.event({ type, data, text, id })    on.end(error?)
 */

import { eventStream } from "./event-stream.js";

/** Parameters go in the body, or with none the request is a GET. */
export function viaFetch(url, given, lastEventId, on) {
  const leaving = new AbortController();
  const body = Object.keys(given).length ? given : undefined;
  const stream = eventStream(url, { body, lastEventId, control: true, signal: leaving.signal });
  stream.addEventListener("statechange", () => stream.state !== "closed" && on.state(stream.state));
  const read = async () => {
    for await (const event of stream) on.event(event);
  };
  read().then(() => on.end(), (error) => leaving.signal.aborted || on.end(error));
  return { close: () => leaving.abort(), stop: () => stream.stop() };
}

/** Parameters go in the query, and so does the id to begin behind: it cannot set a header. */
export function viaEventSource(url, given, lastEventId, on) {
  const query = withQuery(url, lastEventId ? { ...given, last_event_id: lastEventId } : given);
  const source = new EventSource(query);
  let run = "";
  on.state("connecting");
  source.onopen = () => on.state("open");
  source.onerror = async () => {
    if (source.readyState === EventSource.CONNECTING) on.state("waiting");
    else on.end(run ? new Error("The run cannot be resumed: EventSource does not tell why.") : await refusal(query));
  };
  for (const type of ["message", "start", "gap", "end"]) // it hears no name that it was not told
    source.addEventListener(type, ({ data: text, lastEventId: id }) => {
      run = id.split(".")[0];
      const data = parsed(text);
      on.event({ type, id, text, data });
      if (type !== "end") return;
      source.close(); // or it would come back for more
      on.end(data.error && Object.assign(new Error(data.error.message), { name: data.error.type }));
    });
  const stop = () => fetch(`runs/${run}`, { method: "DELETE" });
  return { close: () => source.close(), stop };
}

/** The URL with parameters in its query, a list as one for each of its items. */
export function withQuery(url, given) {
  const query = new URL(url, document.baseURI);
  for (const [name, value] of Object.entries(given))
    for (const item of [value].flat()) query.searchParams.append(name, item);
  return query.href;
}

/** Why a server refused an EventSource, which is not told: the same request once more. */
async function refusal(url) {
  const headers = { Accept: "text/event-stream, application/problem+json" };
  const response = await fetch(url, { headers });
  if (response.status === 204) return undefined;
  const problem = response.ok ? {} : await response.json();
  await response.body?.cancel().catch(() => {});
  return Object.assign(new Error(problem.detail ?? "The connection failed."), { problem });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
