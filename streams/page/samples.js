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
  const headers = needsKey ? [["headers", { Authorization: "Bearer YOUR_KEY" }]] : [];
  const options = [...body, ...headers];
  const client = new URL("page/event-stream.js", document.baseURI);
  return {
    curl: `curl -N ${needsKey ? "-H 'Authorization: Bearer YOUR_KEY' " : ""}${shell(query)}`,

    EventSource: `${needsKey ? "// It cannot send a key: let the app sign the URL.\n" : ""}const source = new EventSource(${json(query)});
source.addEventListener("message", (event) => console.log(JSON.parse(event.data)));
source.addEventListener("end", () => source.close()); // otherwise it reconnects`,

    "event-stream.js": `import { eventStream } from ${json(client.href)};

const stream = eventStream(${json(url.href)}${options.length ? `, {\n${options.map(([name, value]) => `  ${name}: ${json(value)},\n`).join("")}}` : ""});
for await (const { type, data, id } of stream) console.log(type, data, id);
// await stream.stop() stops the run for all its readers`,

    Python: `from streams.client import stream_sync

events = stream_sync(${json(url.href)}${options.map(([name, value]) => `, ${name}=${python(value)}`).join("")})
for event in events:
    print(event.id, event.name, event.data)
print(events.status)  # events.stop() stops the run for all its readers`,
  };
}

const json = (value) => JSON.stringify(value);

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A JSON value as a Python literal. */
function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value !== "object") return json(value);
  const items = Object.entries(value).map(([name, item]) => `${json(name)}: ${python(item)}`);
  return `{${items.join(", ")}}`;
}
