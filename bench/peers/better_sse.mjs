// better-sse on Node's own HTTP server; fan-out uses a better-sse channel.

import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { createChannel, createSession } from "better-sse";

let open;
const gate = new Promise((resolve) => (open = resolve));
const channel = createChannel();
let fed = false;

async function* numbers(count, interval, gated) {
  if (gated) await gate;
  if (interval) await sleep(interval * Math.random());
  for (let number = 0; number < count; number++) {
    yield { number, content: " and so on~" };
    if (interval) await sleep(interval);
  }
}

async function feed(count, interval) {
  fed = true;
  const ends = [];
  channel.on("session-registered", (session) => ends.push(session));
  for await (const value of numbers(count, interval, true)) channel.broadcast(value);
  for (const session of ends) session.state.end();
}

createServer(async (request, response) => {
  const url = new URL(request.url, "http://127.0.0.1");
  const count = Number(url.searchParams.get("count"));
  const interval = 1000 * Number(url.searchParams.get("interval"));
  if (url.pathname === "/go") {
    open();
    response.writeHead(204).end();
    return;
  }
  const session = await createSession(request, response, { keepAlive: 15000 });
  if (url.pathname === "/streams/feed") {
    if (!fed) feed(count, interval);
    session.state = { end: () => response.end() };
    channel.register(session);
  } else {
    await session.iterate(numbers(count, interval, url.searchParams.has("gated")));
    response.end();
  }
}).listen(Number(process.argv[2]), "127.0.0.1");
