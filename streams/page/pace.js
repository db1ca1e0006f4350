/**
 * When events arrived, and what that says about the way they came.
 *
 * The law of this file: it keeps counts and no events, and no more of them than one minute needs,
 * however long the stream. Times are milliseconds, as performance.now() gives them.
 */

const SLOT = 50; // the finest column of the chart
const KEPT = 1_200; // slots: one minute
const BATCH = 5; // events closer than this came together

/** What a proxy that holds events back looks like: groups of events with silence between them. */
const SILENCE = 150;
const GROUP = 2.5;
const LATE = 300;

export class Pace {
  events = 0;
  marks = []; // when the connection was taken up again
  #slots = new Map();
  #previous = NaN;
  #batch = { size: 0, from: NaN };
  #batches = []; // [silence before, size] of the newest
  #firstBatch;
  #opened = true;

  /** @param {number} began when the request was sent @param {number} roundTrip of a request */
  constructor(began, roundTrip) {
    this.began = began;
    this.last = began;
    this.roundTrip = roundTrip;
  }

  /** An event is here; returns the milliseconds since the one before. */
  arrived(at) {
    const gap = this.events++ ? at - this.#previous : NaN;
    const slot = this.#slotAt(at);
    slot.count++;
    if (gap >= 0) {
      slot.shortest = Math.min(slot.shortest, gap);
      slot.longest = Math.max(slot.longest, gap);
    }
    const isTogether = gap < BATCH && at - this.#batch.from < 10 * BATCH;
    if (!isTogether) this.#closeBatch(at);
    this.#batch.size++;
    this.#previous = this.last = at;
    return gap;
  }

  /** The connection is back: what comes first is a replay and says nothing about buffering. */
  reconnected(at) {
    this.marks.push(at);
    if (this.marks.length > 100) this.marks.shift();
    this.#opened = true;
    this.last = at;
  }

  /** The columns between two times, `count` of them: events per second, and the gaps there. */
  columns(from, width, count) {
    const columns = Array.from({ length: count }, () => ({ rate: 0, shortest: Infinity, longest: 0 }));
    for (const [number, slot] of this.#slots) {
      const column = columns[Math.floor((number * SLOT - from) / width)];
      if (!column) continue;
      column.rate += slot.count / (width / 1000);
      column.shortest = Math.min(column.shortest, slot.shortest);
      column.longest = Math.max(column.longest, slot.longest);
    }
    return columns;
  }

  /** Whether something on the way holds events back: its kind, and a sentence. */
  verdict() {
    const first = this.#firstBatch ?? this.#batch;
    const wait = first.from - this.began;
    if (first.size > 3 && wait > LATE + 3 * this.roundTrip)
      return {
        kind: "held",
        text: `Held back: nothing came for ${seconds(wait)}, then ${first.size} events at once, though a stream here begins at once.`,
      };
    const sizes = this.#batches.map(([, size]) => size);
    const mean = sizes.reduce((sum, size) => sum + size, 0) / sizes.length;
    const silence = median(this.#batches.map(([before]) => before));
    if (sizes.length < 3) return { kind: "early", text: "Too few events yet to say how they come." };
    if (mean >= GROUP && silence >= SILENCE)
      return {
        kind: "held",
        text: `In bursts of about ${Math.round(mean)}, ${seconds(silence)} apart. Unless the source makes them like that, something on the way holds them back.`,
      };
    if (mean < 1.5) return { kind: "free", text: "One by one: nothing on the way holds events back." };
    return { kind: "free", text: "In small groups without a pause, as a fast source makes them: nothing on the way holds them back." };
  }

  #slotAt(at) {
    const number = Math.floor(at / SLOT);
    let slot = this.#slots.get(number);
    if (!slot) this.#slots.set(number, (slot = { count: 0, shortest: Infinity, longest: 0 }));
    if (this.#slots.size > KEPT) this.#slots.delete(this.#slots.keys().next().value);
    return slot;
  }

  #closeBatch(at) {
    const { size, from, silence, isReplay } = this.#batch;
    if (size && !this.#firstBatch) this.#firstBatch = this.#batch;
    if (size && !isReplay) this.#batches.push([silence, size]);
    if (this.#batches.length > 50) this.#batches.shift();
    this.#batch = { size: 0, from: at, silence: at - this.#previous, isReplay: this.#opened };
    this.#opened = false;
  }
}

function median(numbers) {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];
}

const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
