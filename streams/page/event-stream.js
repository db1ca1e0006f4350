/** Reads server-sent events with fetch. Unlike EventSource, it can POST, stop a run, report errors.
 *  Invariants: 1. No event is yielded twice, and none is skipped unless the server sends a `gap`.
 *  2. A response that ends without an `end` event is a lost connection: the run is then resumed. */

/** An event: `data` is the parsed JSON, or the text if it is not JSON; `text` is the text as sent.
 *  @typedef {{ type: string, data: any, text: string, id: string }} StreamEvent */

/** Those of fetch, and the client's own. An aborted `signal` throws its reason in the loop.
 *  @typedef {Omit<RequestInit, "body" | "method"> & OwnOptions} Options */
/** @typedef {object} OwnOptions
 *  @property {unknown} [body]  It is sent as JSON with POST.
 *  @property {string} [lastEventId]  The id of the event to start after.
 *  @property {boolean} [control]  Yield the events `start` and `end`, too.
 *  @property {string} [key]  Requests with one key are one run. A POST has a random one.
 *  @property {boolean} [retry]  The server honours keys: a request that got no answer is repeated. */

const MAX_TRIES = 5; // to start a run; a resume has no limit
const MAX_HONOURING = 100;
const honouring = new Set(); // the newest URLs that have sent the URL of a run: they honour keys
const STOPPED = Symbol("stopped before the run started");

/** @param {string | URL} url @param {Options} [options] */
export const eventStream = (url, options) => new EventStream(url, options);

/** One stream, read once: a second loop throws. Each change of `state` dispatches `statechange`. */
export class EventStream extends EventTarget {
  state = /** @type {"connecting" | "open" | "waiting" | "closed"} */ ("connecting");
  /** The URL of the run, empty until the server has sent it. */ run = "";
  /** As `end` says. */ status = /** @type {"" | "completed" | "failed" | "cancelled"} */ ("");
  /** Why it is "waiting": the status, undefined for a lost connection, and the milliseconds. */
  reason = /** @type {{ status?: number, wait: number } | undefined} */ (undefined);
  /** The newest. */ response = /** @type {Response | undefined} */ (undefined);
  /** When bytes last came, heartbeats too, as performance.now(). */ heard = NaN;
  #retry = 2_000; // milliseconds
  #failures = 0; // since the last event
  #hasEvents = false;
  #hasKey = false;
  #key; // unless the caller has put one into the headers or the URL
  #isRefused = false; // the server is asked again to start the run
  #isStopped = false;
  #isRead = false;
  #loop = new AbortController();
  #signal; // of the loop and of the caller
  #onLocated = () => {}; // the run's URL is known, or it is clear that the server does not send it
  #located = new Promise((resolve) => (this.#onLocated = () => resolve(true)));

  constructor(/** @type {string | URL} */ url, options = /** @type {Options} */ ({})) {
    super();
    this.url = url;
    this.options = options;
    this.lastEventId = options.lastEventId ?? "";
    const isNew = !options.lastEventId && (options.body !== undefined || options.retry);
    this.#key = options.key ?? (isNew ? randomKey() : undefined);
    this.#signal = AbortSignal.any([this.#loop.signal, options.signal ?? this.#loop.signal]);
  }

  async *[Symbol.asyncIterator]() {
    if (this.#isRead) throw namedError("AlreadyRead", "an EventStream is read once; make another");
    this.#isRead = true;
    if (this.#isStopped) this.stop().catch((error) => this.#loop.abort(error));
    try {
      while (true) {
        this.#setState("connecting");
        let response = await this.#send(this.run || this.url);
        // The server no longer has the run. A shared source continues with its live one.
        if (this.run && this.lastEventId && [404, 410].includes(response.status))
          response = await this.#send(this.url);
        this.response = response;
        if (response.status === 204) return;
        if (response.ok && (yield* this.#read(response))) return;
        await this.#waitOrThrow(response);
      }
    } catch (error) {
      if (error !== STOPPED) throw error;
    } finally {
      this.#loop.abort();
      this.#setState("closed");
      this.#onLocated();
    }
  }

  /** Stops the run for all its readers: the server closes the source and sends `end`. It waits for
   *  the run's URL, and rejects with "NoRunURL" if the server does not send it. It rejects at a 404,
   *  too, unless this stream has had the `end`: somebody else's run, for instance, goes on. */
  async stop() {
    this.#isStopped = true;
    if (!this.#isRead) return; // the loop calls this again
    if (this.state === "waiting" && this.#isRefused) return this.#loop.abort(STOPPED);
    if (!this.run) await this.#located;
    if (!this.run) throw namedError("NoRunURL", `${this.url} sent no URL at which to stop the run`);
    const response = await this.#send(this.run, "DELETE");
    if (response.ok || (response.status === 404 && this.status)) return;
    throw await problemError(response);
  }

  /** False until the run is known: a second request could then start, and bill, a second run. */
  get #canResume() { return this.run !== "" || this.lastEventId !== ""; }

  /** Whether the first request, whose answer was lost, can be sent again: it gets the same run. */
  get #canRepeat() {
    const isHonoured = this.options.retry || honouring.has(withoutQuery(this.url));
    return isHonoured && this.#hasKey && !this.#hasEvents && this.#failures + 1 < MAX_TRIES;
  }

  /** Throws a TypeError for an invalid URL, header or body, which no retry can mend. */
  async #send(/** @type {string | URL} */ url, method = "GET") {
    const target = new URL(new Request(url).url);
    const headers = new Headers(this.options.headers);
    headers.set("Accept", "text/event-stream, application/problem+json");
    if (this.lastEventId) headers.set("Last-Event-ID", this.lastEventId);
    if (url === this.url) this.#addKey(target, headers);
    const body = url === this.url ? JSON.stringify(this.options.body) : undefined;
    if (body) headers.set("Content-Type", "application/json");
    const signal = method === "GET" ? this.#signal : null;
    const init = { ...this.options, method: body ? "POST" : method, body, headers, signal };
    return fetch(new Request(target, { cache: "no-store", ...init })).catch((error) => {
      const isLost = error instanceof TypeError && signal?.aborted === false;
      if (isLost && (this.#canResume || this.#canRepeat)) return Response.error();
      throw error;
    });
  }

  #addKey(/** @type {URL} */ target, /** @type {Headers} */ headers) {
    const isGiven = headers.has("Idempotency-Key") || target.searchParams.has("idempotency_key");
    this.#hasKey = isGiven || this.#key !== undefined;
    if (isGiven || !this.#key) return;
    // Another origin than the page's may not allow the header. Node has no origin.
    if ((globalThis.origin ?? target.origin) !== target.origin)
      target.searchParams.set("idempotency_key", this.#key);
    else headers.set("Idempotency-Key", this.#key);
  }

  /** Yields a response's events, and returns true after `end`. @param {Response} response */
  async *#read(response) {
    const type = response.headers.get("Content-Type") ?? "no Content-Type";
    if (!response.body || !type.startsWith("text/event-stream"))
      throw namedError("NoEventStream", `${response.url} sent ${type}, not text/event-stream`);
    const location = response.headers.get("Content-Location");
    if (location) this.#locate(location, response);
    if (this.run) this.#onLocated();
    this.#setState("open");
    const parser = new EventParser(this.lastEventId);
    const reader = response.body.getReader();
    while (true) {
      const { value } = await reader.read().catch(() => ({ value: undefined }));
      this.#signal.throwIfAborted();
      if (!value) return false;
      this.heard = performance.now();
      for (const event of parser.feed(value)) {
        const { type, data, id } = event;
        [this.lastEventId, this.#failures, this.#hasEvents] = [id, 0, true];
        const url = type === "start" && !location && data?.url;
        if (url && typeof url === "string") this.#locate(url, response);
        this.#onLocated();
        if (type === "end") this.status = data?.status ?? "";
        if ((type !== "start" && type !== "end") || this.options.control) yield event;
        if (type === "end" && data?.error) throw namedError(data.error.type, data.error.message);
        if (type === "end") return true;
        this.#signal.throwIfAborted();
      }
      [this.lastEventId, this.#retry] = [parser.lastEventId, parser.retry ?? this.#retry];
    }
  }

  #locate(/** @type {string} */ location, /** @type {Response} */ response) {
    const url = URL.canParse(location, response.url) ? new URL(location, response.url) : undefined;
    if (url?.origin !== new URL(new Request(this.url).url).origin) // it would get the caller's headers
      return console.warn(`${this.url}: ignored a run's URL of another origin, ${location.slice(0, 80)}`);
    this.run = url.href;
    honouring.add(withoutQuery(this.url));
    if (honouring.size > MAX_HONOURING) honouring.delete(honouring.values().next().value);
  }

  /** Decides what follows a response without `end`: a pause and a retry, or an error. */
  async #waitOrThrow(/** @type {Response} */ response) {
    const after = retryAfter(response);
    const isLost = response.ok || response.type === "error";
    const isProblem = response.headers.get("Content-Type")?.includes("problem"); // not a gateway's
    const hasNoAnswer = isLost || ([502, 504].includes(response.status) && !isProblem);
    const isRefused = after !== undefined && this.#failures + 1 < MAX_TRIES && !this.#isStopped;
    this.#isRefused = isRefused && !this.#canResume;
    const mayResume = this.#canResume && (isLost || response.status >= 500 || after !== undefined);
    if (!mayResume && !(this.#canRepeat && hasNoAnswer) && !this.#isRefused) throw await problemError(response);
    const failures = this.#failures++;
    // The first pause is the server's `retry`. Later ones grow; jitter spreads the clients.
    const factor = failures ? 2 ** Math.min(failures, 4) * (0.5 + Math.random() / 2) : 1;
    const wait = after || this.#retry * factor;
    this.#setState("waiting", { status: isLost ? undefined : response.status, wait });
    await pause(wait, after || 0, this.#signal);
  }

  /** @param {EventStream["state"]} state @param {EventStream["reason"]} [reason] */
  #setState(state, reason) {
    [this.state, this.reason] = [state, reason];
    this.dispatchEvent(new Event("statechange"));
  }
}

/** Timers freeze in a background tab: `online` and a page that becomes visible end the pause, but
 *  not before `least`. @param {number} wait @param {number} least @param {AbortSignal} signal */
async function pause(wait, least, signal) {
  signal.throwIfAborted();
  const { document, addEventListener } = globalThis; // Node has neither
  const [over, earliest] = [new AbortController(), Date.now() + least];
  const end = () => over.abort();
  const wake = () => Date.now() >= earliest && end();
  const onVisibility = () => document.visibilityState === "visible" && wake();
  addEventListener?.("online", wake, over);
  document?.addEventListener("visibilitychange", onVisibility, over);
  signal.addEventListener("abort", end, over);
  const timer = setTimeout(end, Math.min(wait, 2 ** 31 - 1));
  await new Promise((resolve) => over.signal.addEventListener("abort", resolve));
  clearTimeout(timer);
  signal.throwIfAborted();
}

/** Parses an event stream (WHATWG HTML, section 9.2.6) from bytes that are split anywhere. */
export class EventParser {
  /** Milliseconds. */ retry = /** @type {number | undefined} */ (undefined);
  #decoder = new TextDecoder(); // drops the BOM; keeps an incomplete character for the next call
  #endedInCR = false;
  #line = ""; // without its end, so far
  #data = ""; // each line of it ends with LF
  #type = "";
  #id;

  constructor(lastEventId = "") { this.lastEventId = this.#id = lastEventId; }

  /** @param {Uint8Array} bytes @returns {Generator<StreamEvent, void>} */
  *feed(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (!text) return;
    if (this.#endedInCR) text = text.replace(/^\n/, "");
    this.#endedInCR = text.endsWith("\r");
    const lines = text.split(/\r\n?|\n/);
    lines[0] = this.#line + lines[0];
    this.#line = lines.pop() ?? "";
    for (const line of lines) {
      const [, name, value] = /** @type {string[]} */ (/^([^:]*):? ?(.*)$/s.exec(line));
      if (name === "data") this.#data += `${value}\n`;
      else if (name === "event") this.#type = value;
      else if (name === "id" && !value.includes("\0")) this.#id = value;
      else if (name === "retry" && /^[0-9]+$/.test(value)) this.retry = Number(value);
      if (line) continue;
      const [type, data, id] = [this.#type || "message", this.#data, this.#id];
      [this.#type, this.#data, this.lastEventId] = ["", "", id];
      if (data) yield { type, id, text: data.slice(0, -1), data: parseJson(data.slice(0, -1)) };
    }
  }
}

function parseJson(/** @type {string} */ text) {
  try { return JSON.parse(text); } catch { return text; }
}

const withoutQuery = (/** @type {string | URL} */ url) => String(url).split("?")[0];

/** 128 random bits. A page without HTTPS has no crypto.randomUUID. */
function randomKey() {
  const bytes = Array.from(crypto.getRandomValues(new Uint8Array(16)));
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Milliseconds from Retry-After (RFC 9110, 10.2.3). @param {Response} response */
function retryAfter(response) {
  const value = response.ok ? undefined : response.headers.get("Retry-After");
  if (value) return Math.max(0, Number(value) * 1_000 || Date.parse(value) - Date.now() || 0);
}

/** @param {string} name @param {string} message @param {Record<string, any>} [problem] */
const namedError = (name, message, problem) => Object.assign(new Error(message), { name, problem });

/** An error with the members of a problem response (RFC 9457). @param {Response} response */
async function problemError(response) {
  if (response.ok) return namedError("Broken", "the connection was lost before the first event id");
  const problem = { status: response.status, ...(await response.json().catch(() => null)) };
  const message = problem.detail ?? `${response.url} returned status ${response.status}`;
  return namedError(problem.title ?? "Error", message, problem);
}
