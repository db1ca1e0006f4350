/** Reads the stream that the argument describes, and prints all that happens as lines of JSON. */

const [module, argument] = process.argv.slice(2);
const { eventStream } = await import(module);
let { url, options, abortAt, stopAt, leaveAt } = JSON.parse(argument);

const tell = (what) => console.log(JSON.stringify(what));
const leaving = new AbortController();
const stream = eventStream(url, { ...options, signal: leaving.signal });
const act = async (moment) => {
  if (moment === abortAt) leaving.abort(new Error("left"));
  if (moment !== stopAt) return;
  stopAt = undefined;
  await stream.stop();
};

stream.addEventListener("statechange", () => {
  tell({ state: stream.state });
  act(stream.state);
});
try {
  for await (const event of stream) {
    tell({ event });
    await act(event.id);
    if (event.id === leaveAt) break;
  }
  tell({ done: true });
} catch ({ name, message, problem }) {
  tell({ error: { name, message, problem } });
}
tell({ run: stream.run });
