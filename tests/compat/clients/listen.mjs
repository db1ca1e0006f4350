// What every EventSource has in common: shows each event, and is done when it will not come back.
// It never closes the source: an EventSource that has had the end is told so with 204.
export function listen(EventSource, url, options, show) {
  return new Promise((done) => {
    const source = new EventSource(url, options)
    for (const type of ["start", "message", "gap", "end"]) {
      source.addEventListener(type, (event) => show(type, event.lastEventId, event.data))
    }
    source.addEventListener("error", () => source.readyState === 2 && done())
  })
}
