// The clients for Node: `node clients.mjs NAME URL` prints each event as a line of JSON until the
// client stops by itself.
import { listen } from "./listen.mjs"

const show = (type, id, data) => console.log(JSON.stringify({ type, id, data }))

const clients = {
  async eventsource(url) {
    const { EventSource } = await import("eventsource")
    await listen(EventSource, url, {}, show)
  },

  async undici(url) {
    const { EventSource } = await import("undici")
    await listen(EventSource, url, {}, show)
  },

  async "eventsource-client"(url) {
    const { createEventSource } = await import("eventsource-client")
    for await (const { event, id, data } of createEventSource(url)) {
      show(event ?? "message", id, data)
    }
  },

  // This is only a parser, so this function reconnects.
  async "eventsource-parser"(url) {
    const { EventSourceParserStream } = await import("eventsource-parser/stream")
    const headers = {}
    for (;;) {
      try {
        const { body } = await fetch(url, { headers })
        const events = body
          .pipeThrough(new TextDecoderStream())
          .pipeThrough(new EventSourceParserStream())
        for await (const { event, id, data } of events) {
          show(event ?? "message", id, data)
          headers["Last-Event-ID"] = id
        }
        return
      } catch (error) {
        if (error.message !== "terminated") throw error
      }
    }
  },
}

const [name, url] = process.argv.slice(2)
setInterval(() => {}, 1000) // undici's timer for a reconnect does not keep Node running
await clients[name](url)
process.exit()
