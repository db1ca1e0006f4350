/**
 * Reads server-sent events with fetch. Unlike EventSource, it can POST, stop a run, report errors.
 * Invariants: 1. No event is yielded twice, and none is skipped unless the server sends a `gap`.
 * 2. A response that ends without an `end` event is a lost connection: the run is then resumed.
 * An event's `data` is the parsed JSON, or the text if it is not JSON. `text` is the text as sent.
 * @typedef {{ type: string, data: any, text: string, id: string }} StreamEvent
 * The options are fetch's, and: `body` is sent as JSON with POST, an aborted `signal` throws its
 * reason in the loop, `lastEventId` is the event to start after, `control` adds `start` and `end`.
 * @typedef {{ body?: unknown, lastEventId?: string, control?: boolean }} OwnOptions
 * @typedef {Omit<RequestInit, "body" | "method"> & OwnOptions} Options
 */

/** Tries to start a run that the server refuses with Retry-After. A resume has no limit. */
const MAX_TRIES = 5;

/** @param {string | URL} url @param {Options} [options] */
export const eventStream = (url, options) => new EventStream(url, options);

/** One stream, read once: a second loop throws. Each change of `state` dispatches `statechange`. */
export class EventStream extends EventTarget {
  state = /** @type {"connecting" | "open" | "waiting" | "closed"} */ ("connecting");
  run = ""; // the URL of the run, empty until the server has sent it
  status = /** @type {"" | "completed" | "failed" | "cancelled"} */ (""); // as `end` says
  /** Why it is "waiting": the status, undefined for a lost connection, and the milliseconds. */
  reason = /** @type {{ status?: number, wait: number } | undefined} */ (undefined);
  #retry = 2_000; // milliseconds
  #stopRequested = false;
  #isIterated = false;
  #wake = () => {}; // ends the pause
  #onLocated = () => {}; // the run's URL is known, or it is clear that the server does not send it
  #located = new Promise((resolve) => (this.#onLocated = () => resolve(true)));

  constructor(/** @type {string | URL} */ url, options = /** @type {Options} */ ({})) {
    super();
    this.url = url;
    this.options = options;
    this.lastEventId = options.lastEventId ?? "";
  }

  async *[Symbol.asyncIterator]() {
    if (this.#isIterated)
      throw namedError("AlreadyRead", "an EventStream can be read once; call eventStream again");
    this.#isIterated = true;
    const controller = new AbortController();
    const signal = AbortSignal.any([controller.signal, this.options.signal ?? controller.signal]);
    if (this.#stopRequested) this.stop().catch((error) => controller.abort(error));
    try {
      for (let failures = 0; ; failures++) {
        this.#setState("connecting");
        const response = await this.#connect(signal, failures + 1);
        if (response?.status === 204) return;
        for await (const event of response?.ok ? this.#read(response, signal) : []) {
          failures = 0;
          const { type, data } = event;
          if (type === "end") this.status = data?.status ?? "";
          if ((type !== "start" && type !== "end") || this.options.control) yield event;
          if (type === "end" && data?.error) throw namedError(data.error.type, data.error.message);
          if (type === "end") return;
        }
        if (response?.ok && !this.#canResume)
          throw namedError("Broken", "the connection was lost before the server sent an event id");
        // The first pause is the server's `retry`. Later ones grow; jitter spreads the clients.
        const factor = failures ? 2 ** Math.min(failures, 4) * (0.5 + Math.random() / 2) : 1;
        const least = retryAfter(response) || 0;
        const wait = least || this.#retry * factor;
        this.#setState("waiting", { status: response?.ok ? undefined : response?.status, wait });
        await this.#pause(wait, least, signal);
        if (this.#stopRequested && !this.#canResume) return;
      }
    } finally {
      controller.abort();
      this.#setState("closed");
      this.#onLocated();
    }
  }

  /** False until the run is known: a second request could then start, and bill, a second run. */
  get #canResume() { return this.run !== "" || this.lastEventId !== ""; }

  /** Stops the run for all its readers: the server closes the source and sends `end`. It waits for
   *  the run's URL, and rejects with "NoRunURL" if the server does not send it. */
  async stop() {
    this.#stopRequested = true;
    if (!this.#isIterated) return; // the loop calls this again
    if (this.state === "waiting" && !this.#canResume) return this.#wake(); // there is no run
    if (!this.run) await this.#located;
    if (!this.run) throw namedError("NoRunURL", `${this.url} sent no URL at which to stop the run`);
    const init = { method: "DELETE", signal: null };
    const response = await fetch(this.#request(this.run, undefined, init));
    if (!response.ok && response.status !== 404) throw await problemError(response);
  }

  /** Nothing if the network failed. @param {AbortSignal} signal @param {number} tries */
  async #connect(signal, tries) {
    const send = (/** @type {Request} */ request) =>
      fetch(request).catch((error) => {
        if (signal.aborted || !this.#canResume || !(error instanceof TypeError)) throw error;
      });
    let response;
    if (this.run) response = await send(this.#request(this.run, undefined, { signal }));
    // A restarted server does not know the run, but may restart its source after the last event.
    const isLost = this.lastEventId && response && [404, 410].includes(response.status);
    if (!this.run || isLost)
      response = await send(this.#request(this.url, this.options.body, { signal }));
    if (!response) return;
    const isBusy = retryAfter(response) !== undefined;
    const canWait = this.#canResume || (tries < MAX_TRIES && !this.#stopRequested);
    const isTemporary = isBusy ? canWait : this.#canResume && response.status >= 500;
    if (response.ok || isTemporary) return response;
    throw await problemError(response);
  }

  /** Throws a TypeError for an invalid URL, header or body, which no retry can mend. Another origin
   *  than the stream's gets no cookies and no headers of the caller.
   *  @param {string | URL} url @param {unknown} body @param {RequestInit} init */
  #request(url, body, init) {
    const isForeign = originOf(url) !== originOf(this.url);
    const credentials = isForeign ? "omit" : this.options.credentials;
    const headers = new Headers(isForeign ? undefined : this.options.headers);
    headers.set("Accept", "text/event-stream, application/problem+json");
    if (this.lastEventId) headers.set("Last-Event-ID", this.lastEventId);
    if (body !== undefined) headers.set("Content-Type", "application/json");
    const post = { method: body === undefined ? "GET" : "POST", body: JSON.stringify(body) };
    const own = { ...post, headers, credentials, ...init };
    return new Request(url, { cache: "no-store", ...this.options, ...own });
  }

  /** @param {Response} response @param {AbortSignal} signal */
  async *#read(response, signal) {
    const type = response.headers.get("Content-Type") ?? "no Content-Type";
    if (!response.body || !type.startsWith("text/event-stream"))
      throw namedError("NoEventStream", `${response.url} sent ${type}, not text/event-stream`);
    const location = response.headers.get("Content-Location");
    const locate = (/** @type {unknown} */ url) => {
      if (url && typeof url === "string") this.run = new URL(url, response.url).href;
      if (this.run) this.#onLocated();
    };
    locate(location);
    this.#setState("open");
    const parser = new EventParser(this.lastEventId);
    const reader = response.body.getReader();
    while (true) {
      const { value } = await reader.read().catch(() => ({ value: undefined }));
      signal.throwIfAborted();
      if (!value) return;
      for (const event of parser.feed(value)) {
        this.lastEventId = event.id;
        if (event.type === "start") locate(location ?? event.data?.url);
        this.#onLocated();
        yield event;
        signal.throwIfAborted();
      }
      this.lastEventId = parser.lastEventId;
      this.#retry = parser.retry ?? this.#retry;
    }
  }

  /** Timers freeze in a background tab: `online` and a page that becomes visible end the pause, but
   *  not before `least`. @param {number} wait @param {number} least @param {AbortSignal} signal */
  #pause(wait, least, signal) {
    const { document, addEventListener } = globalThis; // Node has neither
    const [cleanup, earliest] = [new AbortController(), Date.now() + least];
    return new Promise((resolve, reject) => {
      this.#wake = () => resolve(true);
      const timer = setTimeout(resolve, Math.min(wait, 2 ** 31 - 1));
      cleanup.signal.addEventListener("abort", () => clearTimeout(timer));
      const wake = () => Date.now() >= earliest && resolve(true);
      const onVisibility = () => document.visibilityState === "visible" && wake();
      addEventListener?.("online", wake, cleanup);
      document?.addEventListener("visibilitychange", onVisibility, cleanup);
      signal.addEventListener("abort", () => reject(signal.reason), cleanup);
      if (signal.aborted) reject(signal.reason);
      if (this.#stopRequested && !this.#canResume) resolve(true);
    }).finally(() => cleanup.abort());
  }

  /** @param {EventStream["state"]} state @param {EventStream["reason"]} [reason] */
  #setState(state, reason) {
    [this.state, this.reason] = [state, reason];
    this.dispatchEvent(new Event("statechange"));
  }
}

/** Parses an event stream (WHATWG HTML, section 9.2.6) from bytes that are split anywhere. */
export class EventParser {
  retry = /** @type {number | undefined} */ (undefined); // milliseconds
  #decoder = new TextDecoder(); // drops the BOM; keeps an incomplete character for the next call
  #endedInCR = false;
  #lineParts = /** @type {string[]} */ ([]); // joined once, so that a long line takes linear time
  #data = /** @type {string[]} */ ([]);
  #type = "";
  #id;

  constructor(lastEventId = "") {
    this.lastEventId = this.#id = lastEventId;
  }

  /** @param {Uint8Array} bytes @returns {Generator<StreamEvent, void>} */
  *feed(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (!text) return;
    if (this.#endedInCR && text.startsWith("\n")) text = text.slice(1);
    this.#endedInCR = text.endsWith("\r");
    let start = 0;
    for (const { index, 0: lineEnd } of text.matchAll(/\r\n?|\n/g)) {
      const line = this.#lineParts.join("") + text.slice(start, index);
      this.#lineParts = [];
      start = index + lineEnd.length;
      if (line) this.#parseField(line);
      else yield* this.#dispatch();
    }
    if (start < text.length) this.#lineParts.push(text.slice(start));
  }

  /** @param {string} line */
  #parseField(line) {
    const [, name, value] = /** @type {string[]} */ (/^([^:]*):? ?(.*)$/s.exec(line));
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.retry = Number(value);
  }

  *#dispatch() {
    const [type, id, lines] = [this.#type || "message", this.#id, this.#data];
    [this.#type, this.#data, this.lastEventId] = ["", [], id];
    const text = lines.join("\n");
    if (lines.length) yield { type, id, text, data: parseJson(text) };
  }
}

/** Request resolves a relative URL. @param {string | URL} url */
const originOf = (url) => new URL(new Request(url).url).origin;

/** @param {string} text */
function parseJson(text) {
  try { return JSON.parse(text); } catch { return text; }
}

/** Milliseconds from Retry-After (RFC 9110, 10.2.3). @param {Response | void} response */
function retryAfter(response) {
  const value = response?.ok ? undefined : response?.headers.get("Retry-After");
  if (value) return Math.max(0, Number(value) * 1_000 || Date.parse(value) - Date.now() || 0);
}

/** @param {string} name @param {string} message @param {Record<string, any>} [problem] */
const namedError = (name, message, problem) => Object.assign(new Error(message), { name, problem });

/** An error with the members of a problem response (RFC 9457). @param {Response} response */
async function problemError(response) {
  const details = (await response.json().catch(() => null)) ?? {};
  const message = details.detail ?? `${response.url} returned status ${response.status}`;
  return namedError(details.title ?? "Error", message, { status: response.status, ...details });
}
