/** For each line, a JSON object with `bytes` and optional `cuts`, prints what the parser finds. */

import { createInterface } from "node:readline";
import { everyOutcome, outcome } from "./cuts.js";

const { EventParser } = await import(process.argv[2]);
for await (const line of createInterface({ input: process.stdin })) {
  const { bytes, cuts } = JSON.parse(line);
  const data = Buffer.from(bytes, "base64");
  const answer = cuts ? outcome(EventParser, data, cuts) : everyOutcome(EventParser, data);
  console.log(JSON.stringify(answer));
}
