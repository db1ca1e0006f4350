// Shows each event of an EventSource; resolves when it stops reconnecting.
// It never closes the source: after the `end` event the source reconnects once, and a 204 stops it.
export function listen(EventSource, url, options, show) {
  return new Promise((done) => {
    const source = new EventSource(url, options)
    for (const type of ["start", "message", "gap", "end"]) {
      source.addEventListener(type, (event) => show(type, event.lastEventId, event.data))
    }
    source.addEventListener("error", () => source.readyState === 2 && done())
  })
}
