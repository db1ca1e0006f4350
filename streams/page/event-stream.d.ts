export function eventStream(url: string | URL, options?: Options): EventStream;
/** One stream, read once: a second loop throws. Each change of `state` dispatches `statechange`. */
export class EventStream extends EventTarget {
    constructor(url: string | URL, options?: Options);
    state: "connecting" | "open" | "waiting" | "closed";
    /** The URL of the run, empty until the server has sent it. */ run: string;
    /** As `end` says. */ status: "" | "completed" | "failed" | "cancelled";
    /** Why it is "waiting": the status, undefined for a lost connection, and the milliseconds. */
    reason: {
        status?: number;
        wait: number;
    } | undefined;
    /** The newest. */ response: Response | undefined;
    /** When bytes last came, heartbeats too, as performance.now(). */ heard: number;
    url: string | URL;
    options: Options;
    lastEventId: string;
    /** Stops the run for all its readers: the server closes the source and sends `end`. It waits for
     *  the run's URL, and rejects with "NoRunURL" if the server does not send it. It rejects at a 404,
     *  too, unless this stream has had the `end`: somebody else's run, for instance, goes on. */
    stop(): Promise<void>;
    [Symbol.asyncIterator](): AsyncGenerator<StreamEvent, void, unknown>;
    #private;
}
/** Parses an event stream (WHATWG HTML, section 9.2.6) from bytes that are split anywhere. */
export class EventParser {
    constructor(lastEventId?: string);
    /** Milliseconds. */ retry: number | undefined;
    lastEventId: string;
    /** @param {Uint8Array} bytes @returns {Generator<StreamEvent, void>} */
    feed(bytes: Uint8Array): Generator<StreamEvent, void>;
    #private;
}
/**
 * An event: `data` is the parsed JSON, or the text if it is not JSON; `text` is the text as sent.
 */
export type StreamEvent = {
    type: string;
    data: any;
    text: string;
    id: string;
};
/**
 * Those of fetch, and the client's own. An aborted `signal` throws its reason in the loop.
 */
export type Options = Omit<RequestInit, "body" | "method"> & OwnOptions;
export type OwnOptions = {
    /**
     * It is sent as JSON with POST.
     */
    body?: unknown;
    /**
     * The id of the event to start after.
     */
    lastEventId?: string | undefined;
    /**
     * Yield the events `start` and `end`, too.
     */
    control?: boolean | undefined;
    /**
     * Requests with one key are one run. A POST has a random one.
     */
    key?: string | undefined;
    /**
     * The server honours keys: a request that got no answer is repeated.
     */
    retry?: boolean | undefined;
};
