/**
 * Prints, for each event size in the argument, the CPU time in microseconds of parsing such an event.
 *
 * CPU time does not grow when other processes are busy. The minimum of several attempts excludes
 * garbage collection and compilation.
 */

import { outcome } from "./cuts.js";

const ATTEMPTS = 5;
const PIECE = 1000; // bytes

const [module, sizes] = process.argv.slice(2);
const { EventParser } = await import(module);

function cost(size) {
  const bytes = Buffer.from(`data: ${"x".repeat(size)}\n\n`);
  const cuts = Array.from({ length: Math.floor(bytes.length / PIECE) }, (_, n) => (n + 1) * PIECE);
  const before = process.cpuUsage();
  const { events } = outcome(EventParser, bytes, cuts);
  const { user, system } = process.cpuUsage(before);
  if (events[0].text.length !== size) throw new Error(`an event of ${events[0].text.length} bytes`);
  return user + system;
}

const cheapest = (size) => Math.min(...Array.from({ length: ATTEMPTS }, () => cost(size)));
console.log(JSON.stringify(JSON.parse(sizes).map(cheapest)));
