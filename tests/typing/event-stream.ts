/** How TypeScript sees event-stream.js. `make lint` checks it. A comment marks each wrong use. */

import { EventParser, EventStream, eventStream } from "../../streams/page/event-stream.js";
import type { Options, StreamEvent } from "../../streams/page/event-stream.js";

const options: Options = {
  body: { prompt: "Hi" },
  credentials: "include",
  headers: { Authorization: "Bearer key" },
  key: "chat-7/3",
  lastEventId: "Vb3kQ.3",
  retry: true,
  signal: AbortSignal.timeout(1000),
};

export async function right(): Promise<string> {
  const stream: EventStream = eventStream(new URL("/streams/tokens", location.href), options);
  stream.addEventListener("statechange", () => stream.state === "waiting");
  for await (const event of stream) {
    const { id, type, text }: StreamEvent = event;
    console.log(id, type, text, event.data.message?.content);
  }
  if (stream.reason) console.log(stream.reason.status?.toFixed(), stream.reason.wait.toFixed());
  console.log(stream.response?.headers.get("Age"), stream.heard.toFixed(), stream.lastEventId);
  for (const event of new EventParser().feed(new Uint8Array())) console.log(event.text);
  await stream.stop();
  return stream.status || stream.run;
}

export function wrong(): void {
  // @ts-expect-error - a URL is needed
  eventStream();
  // @ts-expect-error - this is not an option
  eventStream("/streams/tokens", { bdy: {} });
  // @ts-expect-error - the method follows from the body
  eventStream("/streams/tokens", { method: "POST" });
  // @ts-expect-error - it is text
  eventStream("/streams/tokens", { lastEventId: 3 });
  const stream = eventStream("/streams/tokens");
  // @ts-expect-error - there is no such state
  stream.state === "connected";
  // @ts-expect-error - a run that has ended is completed
  stream.status === "done";
  // @ts-expect-error - it may be undefined
  stream.reason.wait;
  // @ts-expect-error - an event source has this method, a stream ends by itself or with stop()
  stream.close();
  // @ts-expect-error - a stream is read with `for await`
  for (const event of stream) console.log(event);
}
