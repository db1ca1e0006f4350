/** Feeds a parser bytes in pieces. Runs in Node and, pasted, in a browser. */

export function outcome(EventParser, bytes, cuts) {
  const parser = new EventParser();
  const events = [];
  for (let n = 0; n <= cuts.length; n++)
    for (const { type, text, id } of parser.feed(bytes.subarray(cuts[n - 1] ?? 0, cuts[n])))
      events.push({ type, text, id });
  return { events, retry: parser.retry ?? null };
}

/** The different outcomes of no cut, a cut everywhere, and every one and every two cuts. */
export function everyOutcome(EventParser, bytes) {
  const outcomes = new Set();
  const add = (cuts) => outcomes.add(JSON.stringify(outcome(EventParser, bytes, cuts)));
  add([]);
  add(Array.from(bytes.keys()));
  for (let a = 0; a <= bytes.length; a++) for (let b = a; b <= bytes.length; b++) add([a, b]);
  return Array.from(outcomes, (text) => JSON.parse(text));
}
