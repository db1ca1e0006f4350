/** Feeds bytes to a parser in pieces. Runs in Node and, inserted as text, in a browser. */

/** The events and the retry that the parser finds if the bytes are split at `cuts`. */
export function outcome(EventParser, bytes, cuts) {
  const parser = new EventParser();
  const events = [];
  for (let n = 0; n <= cuts.length; n++)
    for (const { type, text, id } of parser.feed(bytes.subarray(cuts[n - 1] ?? 0, cuts[n])))
      events.push({ type, text, id });
  return { events, retry: parser.retry ?? null };
}

/** The distinct outcomes of: no cut, a cut after every byte, every single cut, every two cuts. */
export function everyOutcome(EventParser, bytes) {
  const outcomes = new Set();
  const add = (cuts) => outcomes.add(JSON.stringify(outcome(EventParser, bytes, cuts)));
  add([]);
  add(Array.from(bytes.keys()));
  for (let a = 0; a <= bytes.length; a++) for (let b = a; b <= bytes.length; b++) add([a, b]);
  return Array.from(outcomes, (text) => JSON.parse(text));
}
