/**
 * Arrival times of events: rates and gaps for the chart, and a verdict on buffering.
 *
 * Invariants:
 * 1. No event is kept. Memory is bounded by one minute of slots, however long the stream.
 * 2. All times are given by the caller, in milliseconds, as from performance.now().
 * 3. A pause in which the page itself was busy says nothing about what is between it and the server.
 */

const SLOT = 50; // milliseconds, the narrowest column of the chart
const MAX_SLOTS = 1_200; // one minute
const MAX_BATCHES = 50;
const MAX_RECONNECTS = 100;
const MAX_BUSY = 100;

/** Events that follow each other within this gap are one batch, up to a maximum duration. */
const BATCH_GAP = 5;
const BATCH_DURATION = 50;

/** From these on, batches with pauses between them look like a buffering proxy. */
const BUFFERED_SIZE = 2.5; // events, mean
const BUFFERED_PAUSE = 150; // milliseconds, median
const BUFFERED_FIRST_WAIT = 300; // milliseconds, plus three round trips

const BUSY = {
  kind: "unknown",
  text: "This browser handles events late: it is busy, or the tab was hidden. So their times say nothing about proxies.",
};

export class Pace {
  events = 0;
  reconnects = []; // times
  #slots = new Map();
  #previous = NaN; // time of the newest event
  #batch = { size: 0, start: NaN };
  #batches = []; // the newest closed ones
  #firstBatch;
  #busy = []; // the newest times in which the page handled nothing: from, to
  #isReplay = true; // whether the next batch is the first one of a connection

  /** @param {number} began when the request was sent @param {number} roundTrip of a request */
  constructor(began, roundTrip) {
    this.began = began;
    this.last = began;
    this.roundTrip = roundTrip;
  }

  /** Records an event. Returns the milliseconds since the previous one, NaN for the first. */
  arrived(time) {
    const gap = this.events++ ? time - this.#previous : NaN;
    const slot = this.#slotAt(time);
    slot.count++;
    if (gap >= 0) {
      slot.shortest = Math.min(slot.shortest, gap);
      slot.longest = Math.max(slot.longest, gap);
    }
    const isSameBatch = gap < BATCH_GAP && time - this.#batch.start < BATCH_DURATION;
    if (!isSameBatch) this.#startBatch(time);
    this.#batch.size++;
    this.#previous = this.last = time;
    return gap;
  }

  /** Records a reconnect. The next batch is a replay, which says nothing about buffering. */
  reconnected(time) {
    this.reconnects.push(time);
    if (this.reconnects.length > MAX_RECONNECTS) this.reconnects.shift();
    this.#isReplay = true;
    this.last = time;
  }

  /** Records that the page could not handle events in this time. */
  busy(from, to) {
    this.#busy.push([from, to]);
    if (this.#busy.length > MAX_BUSY) this.#busy.shift();
  }

  /** `count` columns of `width` ms, starting at `from`: events per second and gaps of each. */
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

  /** Whether something between the source and the page buffers events: a kind and a sentence. */
  verdict() {
    const first = this.#firstBatch ?? this.#batch;
    const wait = first.start - this.began;
    if (first.size > 3 && wait > BUFFERED_FIRST_WAIT + 3 * this.roundTrip)
      return this.#wasBusy(this.began, first.start) ? BUSY : {
        kind: "buffered",
        text: `Buffered: nothing arrived for ${duration(wait)}, then ${first.size} events at once. The server itself sends the first event immediately.`,
      };
    const batches = this.#batches.filter(({ start, pause }) => !this.#wasBusy(start - pause, start));
    if (batches.length < 3 && this.#batches.length >= 3) return BUSY;
    const sizes = batches.map(({ size }) => size);
    const mean = sizes.reduce((sum, size) => sum + size, 0) / sizes.length;
    const pause = median(batches.map(({ pause }) => pause));
    if (sizes.length < 3) return { kind: "unknown", text: "Too few events so far to detect buffering." };
    if (mean >= BUFFERED_SIZE && pause >= BUFFERED_PAUSE)
      return {
        kind: "buffered",
        text: `Events arrive in bursts of about ${Math.round(mean)}, ${duration(pause)} apart. Unless the source sends them in bursts, something between the server and this page buffers them.`,
      };
    if (mean < 1.5) return { kind: "unbuffered", text: "Events arrive one by one: nothing buffers them." };
    return { kind: "unbuffered", text: "Events arrive in small groups without pauses, as a fast source sends them: nothing buffers them." };
  }

  /** Whether the page was busy for half of this time or more. */
  #wasBusy(from, to) {
    const overlap = ([start, end]) => Math.max(0, Math.min(end, to) - Math.max(start, from));
    return 2 * this.#busy.map(overlap).reduce((sum, ms) => sum + ms, 0) >= to - from;
  }

  #slotAt(time) {
    const number = Math.floor(time / SLOT);
    let slot = this.#slots.get(number);
    if (!slot) this.#slots.set(number, (slot = { count: 0, shortest: Infinity, longest: 0 }));
    if (this.#slots.size > MAX_SLOTS) this.#slots.delete(this.#slots.keys().next().value);
    return slot;
  }

  #startBatch(time) {
    const closed = this.#batch;
    if (closed.size && !this.#firstBatch) this.#firstBatch = closed;
    if (closed.size && !closed.isReplay) this.#batches.push(closed);
    if (this.#batches.length > MAX_BATCHES) this.#batches.shift();
    this.#batch = { size: 0, start: time, pause: time - this.#previous, isReplay: this.#isReplay };
    this.#isReplay = false;
  }
}

function median(numbers) {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];
}

const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
