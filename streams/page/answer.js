/**
 * A model's answer: its reasoning, text, refusal and tool calls, each in an element of its own.
 *
 * Invariants:
 * 1. The parts are shown in the order in which they came. A fragment of a tool call joins its call.
 * 2. The page holds at most MAX_TEXT characters of an answer: the oldest are removed.
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
