/**
 * Reads the stream that the argument describes and prints what happens as lines of JSON.
 *
 * `abortAt`, `stopAt` and `leaveAt` are a state, an event id or "before the loop" at which to abort the signal, stop
 * the run or leave the loop. `readAgainAt` is one at which to begin a second loop. `skipPauses` ends
 * each pause of the client at once. `circular` sends a body that JSON cannot represent.
 * `wakeBy` is what a browser reports during each pause: "online", "visible" or "hidden". If the
 * client goes on waiting, that is printed and the signal aborted.
 */

const [module, argument] = process.argv.slice(2);
let { url, options, abortAt, stopAt, leaveAt, readAgainAt, skipPauses, circular, wakeBy } = JSON.parse(argument);

const print = (line) => console.log(JSON.stringify(line));

// The client starts a pause right after it enters "waiting". Node's own fetch sets other timers.
let isPauseNext = false;
const { setTimeout } = globalThis;
globalThis.setTimeout = (callback, milliseconds, ...rest) => {
  const isPause = isPauseNext;
  isPauseNext = false;
  if (isPause) print({ pause: milliseconds });
  if (isPause && wakeBy) queueMicrotask(wake);
  return setTimeout(callback, isPause && skipPauses ? 0 : milliseconds, ...rest);
};

if (wakeBy) {
  const browser = new EventTarget();
  globalThis.addEventListener = browser.addEventListener.bind(browser);
  globalThis.dispatchEvent = browser.dispatchEvent.bind(browser);
  globalThis.document = Object.assign(new EventTarget(), { visibilityState: "hidden" });
}

function wake() {
  if (wakeBy === "online") dispatchEvent(new Event("online"));
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

const { fetch } = globalThis;
globalThis.fetch = (request) => {
  print({ credentials: request.credentials });
  return fetch(request);
};

const { eventStream } = await import(module);
const controller = new AbortController();
if (circular) options.body = { options };
const stream = eventStream(url, { ...options, signal: controller.signal });

async function act(moment) {
  if (moment === readAgainAt) await readAgain();
  if (moment === abortAt) controller.abort(new Error("aborted by the test"));
  if (moment !== stopAt) return;
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

stream.addEventListener("statechange", () => {
  print({ state: stream.state });
  if (stream.reason) print({ reason: stream.reason });
  isPauseNext = stream.state === "waiting";
  act(stream.state);
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
print({ run: stream.run, status: stream.status });
