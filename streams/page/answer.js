/**
 * A model's answer: its reasoning, text, refusal and tool calls, each in an element of its own.
 *
 * Invariants:
 * 1. The parts are shown in the order in which they came. A fragment of a tool call joins its call.
 * 2. The page holds at most MAX_TEXT characters of an answer, and as many that are not painted yet,
 *    as in a hidden tab: the oldest are removed.
 */

import { element } from "./form.js";

const MAX_TEXT = 100_000;

/** The parts of a message, as kinds and texts. A source of the user's may put anything into it. */
export function partsOf({ reasoning, content, refusal, tool_calls: calls }) {
  const parts = [["reasoning", reasoning], ["text", content], ["refusal", refusal]];
  for (const call of Array.isArray(calls) ? calls : []) {
    const { name, arguments: given } = call?.function ?? {};
    parts.push([`tool ${call?.index}`, [name && `${name} `, given].filter(isText).join("")]);
  }
  return parts.filter(([, text]) => isText(text));
}

/** Parts that are not on the page yet. */
export class Parts {
  #parts = []; // [kind, texts]
  #length = 0;

  get isEmpty() { return this.#parts.length === 0; }

  add(parts) {
    for (const [kind, text] of parts) {
      const last = this.#parts.at(-1);
      if (last?.[0] === kind) last[1].push(text);
      else this.#parts.push([kind, [text]]);
      this.#length += text.length;
    }
    while (this.#length > MAX_TEXT && (this.#parts.length > 1 || this.#parts[0][1].length > 1)) {
      const [[, texts]] = this.#parts;
      this.#length -= texts.shift().length;
      if (!texts.length) this.#parts.shift();
    }
  }

  /** Removes and returns all. */
  take() {
    const taken = this.#parts.map(([kind, texts]) => [kind, texts.join("")]);
    [this.#parts, this.#length] = [[], 0];
    return taken;
  }
}

/** Appends parts to the answer in `box`. */
export function append(box, parts) {
  for (const [kind, text] of parts) placeOf(box, kind).firstChild.appendData(text);
  let excess = box.textContent.length - MAX_TEXT;
  while (excess > 0) {
    const { firstChild: place } = box;
    const cut = Math.min(excess, place.firstChild.length);
    place.firstChild.deleteData(0, cut);
    if (!place.firstChild.length) place.remove();
    excess -= cut;
  }
}

/** The element that takes the next text of a kind. */
function placeOf(box, kind) {
  const [name] = kind.split(" ");
  const isOpen = name === "tool" ? (place) => place.dataset.kind === kind : (place) => place === box.lastChild && place.dataset.kind === kind;
  const open = [...box.children].findLast(isOpen);
  if (open) return open;
  const place = element("div", { className: name }, [document.createTextNode("")]);
  place.dataset.kind = kind;
  box.append(place);
  return place;
}

const isText = (value) => typeof value === "string" && value !== "";
