/**
 * What the address of the page says: the source, its fields and the run that is shown.
 *
 *     ?source=tokens&prompt=Hello#Vb3kQn5XTZ6pTqjGkRzB3g
 *
 * Invariants:
 * 1. A field is written as the text in it. A parameter called `source` or `transport` has a dot before
 *    its name, and so has one that begins with a dot.
 * 2. A field with more than MAX_FIELD characters is left out: servers and proxies limit URLs.
 */

const MAX_FIELD = 2_000;
const OWN = /^(\.|(source|transport)$)/;

/** The link to a form and perhaps to a run. @returns {string} relative to the page */
export function linkOf({ source, transport, fields }, run = "") {
  const query = new URLSearchParams({ source });
  if (transport !== "fetch") query.set("transport", transport);
  for (const [name, text] of Object.entries(fields))
    if (text.length <= MAX_FIELD) query.append(OWN.test(name) ? `.${name}` : name, text);
  return `?${query}${run && `#${run}`}`;
}

/** What a link says. @param {{ search: string, hash: string }} link */
export function readLink({ search, hash }) {
  const query = new URLSearchParams(search);
  const own = [...query].filter(([name]) => name !== "source" && name !== "transport");
  return {
    source: query.get("source") ?? "",
    transport: query.get("transport") === "EventSource" ? "EventSource" : "fetch",
    fields: Object.fromEntries(own.map(([name, text]) => [name.replace(/^\./, ""), text])),
    run: hash.slice(1),
  };
}
