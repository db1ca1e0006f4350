/**
 * A form built from a JSON Schema: its fields, its values, and the server's errors at its fields.
 *
 * Invariants:
 * 1. The server validates. A value that does not fit its field's type is sent as typed.
 * 2. A value that equals its default is not sent.
 * 3. A field has no `name`: a parameter called `elements` or `submit` would replace that of the form.
 */

/** Fills `place` with a labelled field per property. Properties that default to null are folded away. */
export function showFields(place, schema) {
  const field = ([name, property]) => {
    const definition = resolved(property, schema.$defs ?? {});
    const input = control(definition);
    Object.assign(input, { id: `field-${name}`, required: schema.required.includes(name) });
    input.dataset.name = name;
    input.setAttribute("aria-describedby", `hint-${name} error-${name}`);
    return element("div", { className: `field ${input.dataset.kind}` }, [
      element("label", { htmlFor: input.id, textContent: name.replaceAll("_", " ") }),
      input,
      element("p", { id: `hint-${name}`, className: "hint", textContent: hint(definition) }),
      element("p", { id: `error-${name}`, className: "error" }),
    ]);
  };
  const isOptional = ([, property]) => property.default === null;
  const all = Object.entries(schema.properties);
  const [visible, folded] = [all.filter((entry) => !isOptional(entry)), all.filter(isOptional)];
  const more = element("details", {}, [element("summary", { textContent: "More" }), ...folded.map(field)]);
  place.replaceChildren(...visible.map(field), ...(folded.length ? [more] : []));
}

/** The values that differ from their defaults, by name. */
export function values(place) {
  return Object.fromEntries(changed(place).map((input) => [input.dataset.name, value(input)]));
}

/** The texts in the fields that differ from their defaults, by name. */
export function texts(place) {
  const text = (input) => (input.type === "checkbox" ? String(input.checked) : input.value);
  return Object.fromEntries(changed(place).map((input) => [input.dataset.name, text(input)]));
}

/** Fills in texts, as `texts` returns them. */
export function fill(place, given) {
  for (const input of inputs(place).filter(({ dataset }) => Object.hasOwn(given, dataset.name))) {
    const text = given[input.dataset.name];
    if (input.type === "checkbox") input.checked = text === "true";
    else input.value = text;
    const folded = input.closest("details");
    if (folded) folded.open = true;
  }
}

/** Shows each error at its field and focuses the first. True if every error has a field. */
export function showErrors(place, errors) {
  const remaining = new Map(errors.map(({ name, detail }) => [name, detail]));
  for (const input of inputs(place).reverse()) {
    const message = remaining.get(input.dataset.name);
    input.setAttribute("aria-invalid", String(remaining.delete(input.dataset.name)));
    document.getElementById(`error-${input.dataset.name}`).textContent = message ?? "";
    if (message === undefined) continue;
    const folded = input.closest("details");
    if (folded) folded.open = true;
    input.focus();
  }
  return remaining.size === 0;
}

export function element(tag, properties = {}, children = []) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const inputs = (place) => [...place.querySelectorAll("input, select, textarea")];

const changed = (place) => inputs(place).filter((input) => !isDefault(input));

function control({ enum: choices, type, anyOf, default: initial, minimum, maximum, maxLength }) {
  if (choices) {
    const node = element("select");
    node.dataset.kind = "json";
    if (initial == null) node.append(new Option("", ""));
    for (const choice of choices) {
      const isInitial = choice === initial;
      node.append(new Option(choice, JSON.stringify(choice), isInitial, isInitial));
    }
    return node;
  }
  const kinds = { boolean: "boolean", integer: "number", number: "number", string: "text" };
  // One that takes a text or a list, say, is sent as a text unless it is JSON of a list or an object.
  const isMixed = anyOf?.some((each) => each.type === "string") && !type;
  const kind = kinds[type] ?? (isMixed ? "mixed" : "json");
  const isLong = kind === "json" || kind === "mixed" || (kind === "text" && maxLength > 200);
  const node = element(isLong ? "textarea" : "input");
  node.dataset.kind = kind;
  if (isLong) node.rows = 2;
  if (kind === "boolean") return Object.assign(node, { type: "checkbox", defaultChecked: initial });
  if (kind === "number") {
    const step = type === "integer" ? 1 : "any";
    Object.assign(node, { type: "number", step, min: minimum ?? "", max: maximum ?? "" });
  }
  node.defaultValue = kind === "json" && initial !== undefined ? JSON.stringify(initial) : initial ?? "";
  return node;
}

/** The property, merged with the schema of its $ref or of its only alternative to null. */
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
  if (kind === "number") return input.validity.badInput ? "not a number" : Number(input.value);
  if (kind === "text") return input.value;
  try {
    const parsed = JSON.parse(input.value);
    return kind === "mixed" && (typeof parsed !== "object" || !parsed) ? input.value : parsed;
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
