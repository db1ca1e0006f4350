/**
 * The pane of the plain response: the same source as beside it, read with fetch, without a run.
 *
 * A plain response has no event ids. So after a lost connection the page can only send the request
 * again, and gets another answer from its beginning.
 */

import { append, Parts, partsOf } from "./answer.js";
import { EventParser } from "./event-stream.js";
import { ask } from "./transports.js";

export class Plain {
  #state = "idle"; // connecting, open, lost, complete, stopped, refused
  #parts = new Parts();
  #isNew = false; // the answer on the page is of an earlier request
  #pieces = 0;
  #requests = 0;
  #repeated = 0; // pieces of answers that were lost
  #status;
  #controller;
  #request = { source: "", body: {} };
  #onChange;

  /** @param {() => void} onChange is called when there is something to paint */
  constructor(onChange) {
    this.#onChange = onChange;
  }

  start(source, body) {
    this.#request = { source, body };
    [this.#requests, this.#repeated] = [0, 0];
    this.#read();
  }

  /** Closes the connection, as `drop` and `stop` of a run; here both are the same to the server. */
  close(state = "idle") {
    this.#controller?.abort();
    if (["connecting", "open"].includes(this.#state) || state === "idle") this.#set(state);
  }

  /** Sends the request again if the answer was lost. */
  reconnect() {
    if (this.#state !== "lost") return;
    this.#repeated += this.#pieces;
    this.#read();
  }

  paint(box, note, isAtEnd) {
    note.textContent = this.#text();
    note.dataset.state = this.#state;
    if (this.#isNew) box.replaceChildren();
    this.#isNew = false;
    isAtEnd(box, () => append(box, this.#parts.take()));
  }

  async #read() {
    this.#controller?.abort();
    const { signal } = (this.#controller = new AbortController());
    this.#requests++;
    [this.#pieces, this.#isNew] = [0, true];
    this.#parts.take();
    this.#set("connecting");
    let isDone = false;
    try {
      const { source, body } = this.#request;
      const response = await ask(`plain/${encodeURIComponent(source)}`, { body, signal });
      this.#set("open");
      const [parser, reader] = [new EventParser(), response.body.getReader()];
      for (let read = await reader.read(); !read.done; read = await reader.read()) {
        signal.throwIfAborted();
        for (const { data } of parser.feed(read.value)) {
          const parts = partsOf(data.message);
          if (parts.length) this.#pieces++;
          this.#parts.add(parts);
          isDone ||= data.done;
        }
        this.#onChange();
      }
    } catch (error) {
      this.#status = error.problem?.status;
      if (!signal.aborted) this.#set(this.#status ? "refused" : "lost");
      return;
    }
    if (!signal.aborted) this.#set(isDone ? "complete" : "lost");
  }

  #set(state) {
    this.#state = state;
    this.#onChange();
  }

  #text() {
    const count = `${this.#pieces.toLocaleString("en")} pieces`;
    const isAgain = this.#requests > 1;
    switch (this.#state) {
      case "connecting": return isAgain ? "starts again from the beginning" : "connecting";
      case "open": return isAgain ? `started again from the beginning: ${count}` : count;
      case "lost": return `lost after ${count}: it cannot be resumed, only started again`;
      case "complete": return isAgain ? `complete: ${count}, and ${this.#repeated.toLocaleString("en")} were made twice` : `complete: ${count}`;
      case "stopped": return `stopped after ${count}`;
      case "refused": return `refused with status ${this.#status}`;
      default: return "";
    }
  }
}
