/**
 * Code that reads the stream on the page, for each kind of client.
 *
 * Invariants:
 * 1. A sample runs as it is when pasted.
 * 2. Every value from the form is quoted for the sample's language.
 */

import { withQuery } from "./transports.js";

/**
 * @param {URL} url of the source or run @param {object} parameters of the source
 * @param {boolean} needsKey whether the server asks for an API key
 */
export function samples(url, parameters, needsKey) {
  const query = withQuery(url, parameters);
  const body = Object.keys(parameters).length ? [["body", parameters]] : [];
  const authorization = { Authorization: "Bearer YOUR_KEY" };
  const headers = needsKey ? [["headers", authorization]] : [];
  const options = [...body, ...headers];
  const client = new URL("page/event-stream.js", document.baseURI);
  return {
    curl: `curl -N ${needsKey ? "-H 'Authorization: Bearer YOUR_KEY' " : ""}${shell(query)}`,

    EventSource: `${needsKey ? "// It cannot send a key: let the app sign the URL.\n" : ""}const source = new EventSource(${script(query)});
source.addEventListener("message", (event) => console.log(JSON.parse(event.data)));
source.addEventListener("end", () => source.close()); // otherwise it reconnects`,

    "event-stream.js": `import { eventStream } from ${script(client.href)};

const stream = eventStream(${script(url.href)}${options.length ? `, {\n${options.map(([name, value]) => `  ${name}: ${script(value)},\n`).join("")}}` : ""});
for await (const { type, data, id } of stream) console.log(type, data, id);
// await stream.stop() stops the run for all its readers`,

    Python: `from streams.client import stream_sync

events = stream_sync(${json(url.href)}${options.map(([name, value]) => `, ${name}=${python(value)}`).join("")})
for event in events:
    print(event.id, event.name, event.data)
print(events.status)  # events.stop() stops the run for all its readers`,

    React: `import { useEffect, useState } from "react";
import { eventStream } from ${script(client.href)}; // or a copy of this file

export function useStream(url, body) {
  const [state, setState] = useState({ events: [], error: undefined });
  const request = JSON.stringify(body);
  useEffect(() => {
    const controller = new AbortController();
    const options = { body: request && JSON.parse(request), signal: controller.signal${needsKey ? `, headers: ${script(authorization)}` : ""} };
    const read = async () => {
      setState({ events: [], error: undefined });
      for await (const event of eventStream(url, options))
        setState(({ events }) => ({ events: [...events, event], error: undefined }));
    };
    read().catch((error) => {
      if (!controller.signal.aborted) setState(({ events }) => ({ events, error }));
    });
    return () => controller.abort();
  }, [url, request]);
  return state;
}

export function useThisStream() {
  return useStream(${script(url.href)}${body.length ? `, ${script(parameters)}` : ""});
}`,

    HTMX: `<script src="https://unpkg.com/htmx.org@2"></script>
<script src="https://unpkg.com/htmx-ext-sse@2"></script>

<!-- ${needsKey ? "It cannot send a key: let the app sign the URL.\n     " : ""}Without sse-close, the end of the stream is a lost connection: htmx starts the run again.
     textContent shows the JSON as text; with hx-swap="beforeend", let the source yield HTML. -->
<div hx-ext="sse" sse-connect="${html(query)}"
     sse-swap="message" hx-swap="textContent" sse-close="end"></div>`,
  };
}

const json = (value) => JSON.stringify(value);

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const html = (text) => text.replaceAll("&", "&amp;").replaceAll('"', "&quot;").replaceAll("<", "&lt;");

/** A JSON value as a JavaScript literal: in one, a plain __proto__ would set the prototype. */
function script(value) {
  if (Array.isArray(value)) return `[${value.map(script).join(", ")}]`;
  if (value === null || typeof value !== "object") return json(value);
  const name = (key) => (key === "__proto__" ? '["__proto__"]' : json(key));
  return `{ ${Object.entries(value).map(([key, item]) => `${name(key)}: ${script(item)}`).join(", ")} }`;
}

/** A JSON value as a Python literal. */
function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value !== "object") return json(value);
  const items = Object.entries(value).map(([name, item]) => `${json(name)}: ${python(item)}`);
  return `{${items.join(", ")}}`;
}
