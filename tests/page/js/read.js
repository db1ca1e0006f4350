/**
 * For each line, a JSON object that describes a stream, reads it and answers with the list of what
 * happened. It ends with `unfinished` if that takes 30 s, and has `timersLeft` if a pause goes on.
 *
 * `abortAt`, `stopAt` and `leaveAt` are a state, an event id or "before the loop" at which to abort
 * the signal, stop the run or leave the loop. `readAgainAt` is one at which to begin a second loop.
 * `stopAfterwards` stops the run after the loop. `skipPauses` ends each pause of the client at once.
 * `origin` is that of the page. `circular` sends a body that JSON cannot represent. `wakeBy` is what a browser reports during each
 * pause: "online", "visible" or "hidden". If the client goes on waiting, that is printed and the
 * signal aborted.
 */

import { createInterface } from "node:readline";

const { eventStream } = await import(process.argv[2]);
const { setTimeout, clearTimeout, fetch } = globalThis;
crypto.randomUUID = undefined; // as in a page without HTTPS

for await (const line of createInterface({ input: process.stdin })) {
  const lines = [];
  let timer;
  const tooLong = new Promise((resolve) => (timer = setTimeout(resolve, 30_000, true)));
  const print = (line) => lines.push(line);
  if (await Promise.race([read(JSON.parse(line), print), tooLong])) print({ unfinished: true });
  clearTimeout(timer);
  console.log(JSON.stringify(lines));
}

async function read({ url, options, abortAt, stopAt, leaveAt, readAgainAt, ...rest }, print) {
  const { stopAfterwards, skipPauses, circular, wakeBy, origin } = rest;
  globalThis.origin = origin;

  // The client starts a pause right after it enters "waiting". Node's own fetch sets other timers.
  let isPauseNext = false;
  const pauses = new Set();
  globalThis.setTimeout = (callback, milliseconds, ...rest) => {
    if (!isPauseNext) return setTimeout(callback, milliseconds, ...rest);
    isPauseNext = false;
    print({ pause: milliseconds });
    if (wakeBy) queueMicrotask(wake);
    const end = () => callback(pauses.delete(timer));
    const timer = setTimeout(end, skipPauses ? 0 : milliseconds);
    pauses.add(timer);
    return timer;
  };
  globalThis.clearTimeout = (timer) => clearTimeout(timer, pauses.delete(timer));

  const browser = wakeBy ? new EventTarget() : undefined;
  globalThis.addEventListener = browser?.addEventListener.bind(browser);
  globalThis.document = browser && Object.assign(new EventTarget(), { visibilityState: "hidden" });

  function wake() {
    if (wakeBy === "online") browser.dispatchEvent(new Event("online"));
    else {
      document.visibilityState = wakeBy;
      document.dispatchEvent(new Event("visibilitychange"));
    }
    setImmediate(() => {
      if (stream.state !== "waiting") return;
      print({ stillWaiting: true });
      controller.abort(new Error("aborted by the test"));
    });
  }

  globalThis.fetch = (request) => {
    print({ credentials: request.credentials });
    return fetch(request);
  };

  const controller = new AbortController();
  if (circular) options.body = { options };
  const stream = eventStream(url, { ...options, signal: controller.signal });

  async function act(moment) {
    if (moment === readAgainAt) await readAgain();
    if (moment === abortAt) controller.abort(new Error("aborted by the test"));
    if (moment === stopAt) await stop();
  }

  async function stop() {
    stopAt = undefined;
    const outcome = await stream.stop().then(() => "stopped", ({ name }) => name);
    print({ stop: outcome });
  }

  async function readAgain() {
    readAgainAt = undefined;
    try {
      for await (const event of stream) print({ again: event });
    } catch ({ name, message }) {
      print({ secondLoop: name, message });
    }
  }

  const acts = []; // The loop can end before what it does at a state is over.
  stream.addEventListener("statechange", () => {
    print({ state: stream.state });
    if (stream.reason) print({ reason: stream.reason });
    isPauseNext = stream.state === "waiting";
    acts.push(act(stream.state));
  });
  await act("before the loop");
  try {
    for await (const event of stream) {
      print({ event });
      await act(event.id);
      if (event.id === leaveAt) break;
    }
    print({ done: true });
  } catch ({ name, message, problem }) {
    print({ error: { name, message, problem } });
  }
  await Promise.all(acts);
  if (stopAfterwards) await stop();
  print({ run: stream.run, status: stream.status });
  if (pauses.size) print({ timersLeft: pauses.size });
}
