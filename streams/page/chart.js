/**
 * The live chart: events per second above, the time between two events below, reconnects across.
 *
 * The law of this file: one path for each kind of mark, whatever the number of events; colours are
 * the style sheet's. Gaps are on a logarithmic scale, for 2 ms and 20 s both matter.
 */

const SPANS = [5_000, 10_000, 30_000, 60_000];
const COLUMNS = 100;
const [LEFT, RIGHT, TOP, MIDDLE, BOTTOM] = [44, 8, 8, 0.5, 20];
const LOWEST_GAP = 1; // ms
const DECADES = 4.5; // up to some 30 s

/** Draws the pace of events up to `now`. */
export function drawChart(svg, pace, now) {
  const { width, height } = svg.getBoundingClientRect();
  const span = SPANS.find((ms) => now - pace.began <= ms) ?? SPANS.at(-1);
  const step = span / COLUMNS;
  const end = Math.max(Math.ceil(now / step) * step, Math.floor(pace.began / step) * step + span);
  const from = end - span;
  const columns = pace.columns(from, step, COLUMNS);
  const second = Math.max(1, Math.round(1000 / step));
  const first = Math.floor((pace.began - from) / step);
  const rates = smooth(columns.map(({ rate }) => rate), second, first);
  const top = niceCeiling(Math.max(...rates));

  const x = (at) => LEFT + ((at - from) / span) * (width - LEFT - RIGHT);
  const split = TOP + (height - TOP - BOTTOM) * MIDDLE;
  const yRate = (rate) => split - (rate / top) * (split - TOP);
  const floor = height - BOTTOM;
  const yGap = (gap) => floor - (Math.log10(Math.max(gap, LOWEST_GAP)) / DECADES) * (floor - split - 16);

  const isPast = (_, n) => from + n * step <= now && from + (n + 1) * step > pace.began;
  const drawn = rates.map((rate, n) => [x(from + (n + 0.5) * step), yRate(rate)]).filter(isPast);
  const line = drawn.map(([a, b], n) => `${n ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
  const area = drawn.length ? `${line}L${drawn.at(-1)[0]} ${split}L${drawn[0][0]} ${split}Z` : "";
  const gaps = columns.map(({ shortest, longest }, n) =>
    longest || shortest < Infinity
      ? `M${x(from + (n + 0.5) * step).toFixed(1)} ${(yGap(longest) - 1.5).toFixed(1)}V${(yGap(shortest) + 1.5).toFixed(1)}`
      : "",
  );
  const marks = pace.marks.filter((at) => at >= from).map((at) => `M${x(at).toFixed(1)} ${TOP}V${floor}`);

  put(svg, "path", "grid", [
    `M${LEFT} ${TOP}H${width - RIGHT}M${LEFT} ${split}H${width - RIGHT}`,
    ...[10, 1000].map((gap) => `M${LEFT} ${yGap(gap)}H${width - RIGHT}`),
    `M${LEFT} ${floor}H${width - RIGHT}`,
  ].join(""));
  put(svg, "path", "area", area);
  put(svg, "path", "line", line);
  put(svg, "path", "gaps", gaps.join(""));
  put(svg, "path", "marks", marks.join(""));
  label(svg, "top", LEFT - 6, TOP + 4, `${top}/s`);
  label(svg, "low", LEFT - 6, yGap(10) + 4, "10 ms");
  label(svg, "high", LEFT - 6, yGap(1000) + 4, "1 s");
  label(svg, "from", LEFT, height - 4, elapsed(from - pace.began));
  label(svg, "to", width - RIGHT, height - 4, elapsed(end - pace.began));
}

const elapsed = (ms) => `${Math.round(ms / 1000)} s`;

/** The mean of each value and those before it, `window` in all but where the run is younger. */
function smooth(values, window, first) {
  let sum = 0;
  return values.map((value, n) => {
    sum += value - (values[n - window] ?? 0);
    return Math.max(0, sum / Math.min(window, Math.max(n - first + 1, window / 3)));
  });
}

function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 5)));
  return [1, 1.5, 2, 3, 4, 6, 8, 10].map((n) => n * power).find((n) => n >= value) ?? 10 * power;
}

function put(svg, tag, name, d) {
  node(svg, tag, name).setAttribute("d", d);
}

function label(svg, name, x, y, text) {
  const made = node(svg, "text", name);
  made.setAttribute("x", x);
  made.setAttribute("y", y);
  made.textContent = text;
}

function node(svg, tag, name) {
  let made = svg.querySelector(`.${name}`);
  if (!made) {
    made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    made.classList.add(name);
    svg.append(made);
  }
  return made;
}
