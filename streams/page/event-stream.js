/**
 * Reads server-sent events with fetch: an EventSource that can POST, stop, and say what went wrong.
 *
 * The law of this file: nothing is yielded twice, and nothing is missed without a `gap` event. A
 * response that stops without the server's `end` event is a break: its run is then read on.
 * An event's `data` is the parsed JSON, or the text where that is none; `text` is what was sent.
 * @typedef {{ type: string, data: any, text: string, id: string }} StreamEvent
 * The options are fetch's, but a `body` is sent as JSON with POST, and a `signal` throws its reason
 * in the loop. `lastEventId`: begin behind it. `control`: yield the server's `start` and `end` too.
 * @typedef {{ body?: unknown, lastEventId?: string, control?: boolean }} Own
 * @typedef {Omit<RequestInit, "body" | "method"> & Own} Options
 */

/** @param {string | URL} url @param {Options} [options] */
export const eventStream = (url, options) => new EventStream(url, options);

/** One stream, to be iterated once. Dispatches `statechange` when its `state` has changed. */
export class EventStream extends EventTarget {
  state = /** @type {"connecting" | "open" | "waiting" | "closed"} */ ("connecting");
  run = ""; // its URL, once the server has named it
  #retry = 2_000;
  #stopping = false;

  constructor(/** @type {string | URL} */ url, options = /** @type {Options} */ ({})) {
    super();
    this.url = url;
    this.options = options;
    this.lastEventId = options.lastEventId ?? "";
  }

  async *[Symbol.asyncIterator]() {
    const leaving = new AbortController();
    const signal = AbortSignal.any([leaving.signal, this.options.signal ?? leaving.signal]);
    try {
      for (let breaks = 0; ; breaks++) {
        this.#become("connecting");
        const response = await this.#request(signal).catch((error) => {
          if (signal.aborted || !this.#canResume || !(error instanceof TypeError)) throw error;
        });
        if (response?.status === 204) return;
        for await (const event of response?.ok ? this.#read(response, signal) : []) {
          breaks = 0;
          const { type, data } = event;
          if ((type !== "start" && type !== "end") || this.options.control) yield event;
          if (type === "end" && data?.error) throw failure(data.error.type, data.error.message);
          if (type === "end") return;
        }
        if (response?.ok && !this.#canResume) throw failure("Broken", "it broke off at once");
        this.#become("waiting");
        // The server's own pause first, then longer ones, no two clients' alike.
        const growth = breaks ? 2 ** Math.min(breaks, 4) * (0.5 + Math.random() / 2) : 1;
        await sleep(retryAfter(response) ?? this.#retry * growth, signal);
      }
    } finally {
      leaving.abort();
      this.#become("closed");
    }
  }

  /** If not, a second try could start, and pay for, a second run. */
  get #canResume() { return this.run !== "" || this.lastEventId !== ""; }

  /** Stops the run itself, for all who read it: its source is closed, and `end` ends the loop. */
  async stop() {
    this.#stopping = !this.run;
    if (this.#stopping) return; // it is stopped as soon as the server has named it
    const response = await this.#fetch(this.run, undefined, { method: "DELETE", signal: null });
    if (!response.ok && response.status !== 404) throw await problem(response);
  }

  /** A response to read, or one that asks to come back later. @param {AbortSignal} signal */
  async #request(signal) {
    let response = this.run && (await this.#fetch(this.run, undefined, { signal }));
    // A server that was killed has forgotten the run, but may restart its source where it was.
    if (!response || (this.lastEventId && [404, 410].includes(response.status)))
      response = await this.#fetch(this.url, this.options.body, { signal });
    const isPassing = this.#canResume && response.status >= 500;
    if (response.ok || isPassing || retryAfter(response) !== undefined) return response;
    throw await problem(response);
  }

  /** @param {string | URL} url @param {unknown} body @param {RequestInit} init */
  #fetch(url, body, init) {
    const headers = new Headers(this.options.headers);
    headers.set("Accept", "text/event-stream, application/problem+json");
    if (this.lastEventId) headers.set("Last-Event-ID", this.lastEventId);
    if (body !== undefined) headers.set("Content-Type", "application/json");
    const post = { method: body === undefined ? "GET" : "POST", body: JSON.stringify(body) };
    return fetch(url, { cache: "no-store", ...this.options, ...post, headers, ...init });
  }

  /** @param {Response} response @param {AbortSignal} signal */
  async *#read(response, signal) {
    const type = response.headers.get("Content-Type") ?? "of no type";
    if (!response.body || !type.startsWith("text/event-stream"))
      throw failure("NoEventStream", `${response.url} is ${type}, not an event stream`);
    const location = response.headers.get("Content-Location");
    if (location) this.run = new URL(location, response.url).href;
    this.#become("open");
    if (this.#stopping) await this.stop();
    const parser = new EventParser(this.lastEventId);
    const reader = response.body.getReader();
    while (true) {
      const { value } = await reader.read().catch(() => ({ value: undefined }));
      signal.throwIfAborted();
      if (!value) return;
      for (const event of parser.feed(value)) {
        this.lastEventId = event.id;
        yield event;
        signal.throwIfAborted();
      }
      this.lastEventId = parser.lastEventId;
      this.#retry = parser.retry ?? this.#retry;
    }
  }

  /** @param {EventStream["state"]} state */
  #become(state) {
    this.state = state;
    this.dispatchEvent(new Event("statechange"));
  }
}

/** The parser of WHATWG HTML, section 9.2.6: takes bytes cut anywhere, yields events. */
export class EventParser {
  retry = /** @type {number | undefined} */ (undefined); // milliseconds
  #decoder = new TextDecoder(); // drops a BOM, and keeps a character that is cut in two
  #endedInCR = false;
  #line = /** @type {string[]} */ ([]); // pieces, joined once: a long line costs no more
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
      const line = this.#line.join("") + text.slice(start, index);
      this.#line = [];
      start = index + lineEnd.length;
      if (line) this.#field(line);
      else yield* this.#dispatch();
    }
    if (start < text.length) this.#line.push(text.slice(start));
  }

  /** @param {string} line */
  #field(line) {
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
    if (lines.length) yield { type, id, text, data: parsed(text) };
  }
}

/** @param {string} text */
function parsed(text) {
  try { return JSON.parse(text); } catch { return text; }
}

/** The milliseconds a refusal asks for (RFC 9110, 10.2.3). @param {Response | void} response */
function retryAfter(response) {
  const value = response?.ok ? undefined : response?.headers.get("Retry-After");
  if (value) return Math.max(0, Number(value) * 1_000 || Date.parse(value) - Date.now() || 0);
}

/** @param {string} name @param {string} message @param {Record<string, any>} [problem] */
const failure = (name, message, problem) => Object.assign(new Error(message), { name, problem });

/** What a problem response tells (RFC 9457), all of it as `problem`. @param {Response} response */
async function problem(response) {
  const about = (await response.json().catch(() => null)) ?? {};
  const message = about.detail ?? `${response.url} answers ${response.status}`;
  return failure(about.title ?? "Error", message, { status: response.status, ...about });
}

/** @param {number} milliseconds @param {AbortSignal} signal @returns {Promise<void>} */
const sleep = (milliseconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, Math.min(milliseconds, 2 ** 31 - 1));
    const leave = () => (clearTimeout(timer), reject(signal.reason));
    signal.aborted ? leave() : signal.addEventListener("abort", leave);
  });
