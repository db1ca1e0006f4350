/**
 * A form made of a JSON Schema, its values, and a server's faults shown at its fields.
 *
 * The law of this file: the server is the judge. What a field holds is sent as its type, or else
 * as it was typed; what is still the default is not sent.
 */

/** Fills `place` with a labelled field for each property; those that may be null are folded away. */
export function showFields(place, schema) {
  const field = ([name, property]) => {
    const about = resolved(property, schema.$defs ?? {});
    const input = control(about);
    Object.assign(input, { id: `field-${name}`, name, required: schema.required.includes(name) });
    input.setAttribute("aria-describedby", `hint-${name} fault-${name}`);
    return element("div", { className: `field ${input.dataset.kind}` }, [
      element("label", { htmlFor: input.id, textContent: name.replaceAll("_", " ") }),
      input,
      element("p", { id: `hint-${name}`, className: "hint", textContent: hint(about) }),
      element("p", { id: `fault-${name}`, className: "fault" }),
    ]);
  };
  const isExtra = ([, property]) => property.default === null;
  const all = Object.entries(schema.properties);
  const [plain, extra] = [all.filter((each) => !isExtra(each)), all.filter(isExtra)];
  const more = element("details", {}, [element("summary", { textContent: "More" }), ...extra.map(field)]);
  place.replaceChildren(...plain.map(field), ...(extra.length ? [more] : []));
}

/** What the form holds, by name, where it is not the default. */
export function values(place) {
  const changed = inputs(place).filter((input) => !isDefault(input));
  return Object.fromEntries(changed.map((input) => [input.name, value(input)]));
}

/** Puts back what `values` gave. */
export function fill(place, given) {
  for (const input of inputs(place).filter(({ name }) => name in given)) {
    const { kind } = input.dataset;
    if (kind === "boolean") input.checked = given[input.name];
    else input.value = kind === "json" ? JSON.stringify(given[input.name]) : given[input.name];
  }
}

/** Shows each fault at its field, and goes to the first. True if each of them had one. */
export function showFaults(place, faults) {
  const open = new Map(faults.map(({ name, detail }) => [name, detail]));
  for (const input of inputs(place).reverse()) {
    const fault = open.get(input.name);
    input.setAttribute("aria-invalid", String(open.delete(input.name)));
    document.getElementById(`fault-${input.name}`).textContent = fault ?? "";
    if (fault === undefined) continue;
    const folded = input.closest("details");
    if (folded) folded.open = true;
    input.focus();
  }
  return open.size === 0;
}

export function element(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const inputs = (place) => [...place.querySelectorAll("input, select, textarea")];

function control({ enum: choices, type, default: preset, minimum, maximum, maxLength }) {
  if (choices) {
    const made = element("select");
    made.dataset.kind = "json";
    if (preset == null) made.append(new Option("", ""));
    for (const choice of choices) {
      const isPreset = choice === preset;
      made.append(new Option(choice, JSON.stringify(choice), isPreset, isPreset));
    }
    return made;
  }
  const kinds = { boolean: "boolean", integer: "number", number: "number", string: "text" };
  const kind = kinds[type] ?? "json";
  const isLong = kind === "json" || (kind === "text" && maxLength > 200);
  const made = element(isLong ? "textarea" : "input");
  made.dataset.kind = kind;
  if (isLong) made.rows = 2;
  if (kind === "boolean") return Object.assign(made, { type: "checkbox", defaultChecked: preset });
  if (kind === "number") {
    const step = type === "integer" ? 1 : "any";
    Object.assign(made, { type: "number", step, min: minimum ?? "", max: maximum ?? "" });
  }
  made.defaultValue = kind === "json" && preset !== undefined ? JSON.stringify(preset) : preset ?? "";
  return made;
}

/** The property with what a $ref, or the one schema beside null, says of it. */
function resolved(property, definitions) {
  const target = definitions[property.$ref?.replace("#/$defs/", "")];
  const kinds = (property.anyOf ?? []).filter(({ type }) => type !== "null");
  return { ...target, ...(kinds.length === 1 && resolved(kinds[0], definitions)), ...property };
}

function isDefault(input) {
  if (input.type === "checkbox") return input.checked === input.defaultChecked;
  if (input.validity.badInput) return false;
  if (input.value === "" && input.dataset.kind !== "text") return true;
  if (input.localName !== "select") return input.value === input.defaultValue;
  return input.selectedOptions[0].defaultSelected;
}

function value(input) {
  const { kind } = input.dataset;
  if (kind === "boolean") return input.checked;
  if (kind === "number") return input.validity.badInput ? "no number" : Number(input.value);
  if (kind === "text") return input.value;
  try {
    return JSON.parse(input.value);
  } catch {
    return input.value;
  }
}

function hint({ description = "", minimum, exclusiveMinimum, maximum }) {
  const low = minimum ?? exclusiveMinimum;
  if (low === undefined || maximum === undefined || maximum > 1e12) return description;
  const range = `${low.toLocaleString("en")} to ${maximum.toLocaleString("en")}`;
  return description ? `${description} · ${range}` : range;
}
