/**
 * The live chart: events per second on top, gaps between events below, reconnects across both.
 *
 * Invariants:
 * 1. Each kind of mark is one path, whatever the number of events.
 * 2. The style sheet sets all colours.
 *
 * The scale of gaps is logarithmic, because both 2 ms and 20 s must be readable.
 */

const SPANS = [5_000, 10_000, 30_000, 60_000];
const COLUMNS = 100;
const [LEFT, RIGHT, TOP, MIDDLE, BOTTOM] = [44, 8, 8, 0.5, 20];
const LOWEST_GAP = 1; // ms
const DECADES = 4.5; // up to about 30 s

/** Draws the pace of events up to `now`. */
export function drawChart(svg, pace, now) {
  const { width, height } = svg.getBoundingClientRect();
  const span = SPANS.find((ms) => now - pace.began <= ms) ?? SPANS.at(-1);
  const step = span / COLUMNS;
  const end = Math.max(Math.ceil(now / step) * step, Math.floor(pace.began / step) * step + span);
  const from = end - span;
  const columns = pace.columns(from, step, COLUMNS);
  const columnsPerSecond = Math.max(1, Math.round(1000 / step));
  const firstColumn = Math.floor((pace.began - from) / step);
  const rates = smooth(columns.map(({ rate }) => rate), columnsPerSecond, firstColumn);
  const top = niceCeiling(Math.max(...rates));

  const x = (time) => LEFT + ((time - from) / span) * (width - LEFT - RIGHT);
  const split = TOP + (height - TOP - BOTTOM) * MIDDLE;
  const yRate = (rate) => split - (rate / top) * (split - TOP);
  const floor = height - BOTTOM;
  const yGap = (gap) => floor - (Math.log10(Math.max(gap, LOWEST_GAP)) / DECADES) * (floor - split - 16);

  const isWithinRun = (_, n) => from + n * step <= now && from + (n + 1) * step > pace.began;
  const points = rates.map((rate, n) => [x(from + (n + 0.5) * step), yRate(rate)]).filter(isWithinRun);
  const line = points.map(([a, b], n) => `${n ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
  const area = points.length ? `${line}L${points.at(-1)[0]} ${split}L${points[0][0]} ${split}Z` : "";
  const gaps = columns.map(({ shortest, longest }, n) =>
    longest || shortest < Infinity
      ? `M${x(from + (n + 0.5) * step).toFixed(1)} ${(yGap(longest) - 1.5).toFixed(1)}V${(yGap(shortest) + 1.5).toFixed(1)}`
      : "",
  );
  const isVisible = (time) => time >= from;
  const reconnects = pace.reconnects.filter(isVisible).map((time) => `M${x(time).toFixed(1)} ${TOP}V${floor}`);

  setPath(svg, "grid", [
    `M${LEFT} ${TOP}H${width - RIGHT}M${LEFT} ${split}H${width - RIGHT}`,
    ...[10, 1000].map((gap) => `M${LEFT} ${yGap(gap)}H${width - RIGHT}`),
    `M${LEFT} ${floor}H${width - RIGHT}`,
  ].join(""));
  setPath(svg, "area", area);
  setPath(svg, "line", line);
  setPath(svg, "gaps", gaps.join(""));
  setPath(svg, "reconnects", reconnects.join(""));
  setLabel(svg, "top", LEFT - 6, TOP + 4, `${top}/s`);
  setLabel(svg, "low", LEFT - 6, yGap(10) + 4, "10 ms");
  setLabel(svg, "high", LEFT - 6, yGap(1000) + 4, "1 s");
  setLabel(svg, "from", LEFT, height - 4, elapsed(from - pace.began));
  setLabel(svg, "to", width - RIGHT, height - 4, elapsed(end - pace.began));
}

const elapsed = (ms) => `${Math.round(ms / 1000)} s`;

/** The moving mean over `size` values, or over fewer while the run is younger than that. */
function smooth(values, size, first) {
  let sum = 0;
  return values.map((value, n) => {
    sum += value - (values[n - size] ?? 0);
    return Math.max(0, sum / Math.min(size, Math.max(n - first + 1, size / 3)));
  });
}

function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 5)));
  return [1, 1.5, 2, 3, 4, 6, 8, 10].map((n) => n * power).find((n) => n >= value) ?? 10 * power;
}

function setPath(svg, name, d) {
  child(svg, "path", name).setAttribute("d", d);
}

function setLabel(svg, name, x, y, text) {
  const label = child(svg, "text", name);
  label.setAttribute("x", x);
  label.setAttribute("y", y);
  label.textContent = text;
}

/** The child of that class, created on first use. */
function child(svg, tag, name) {
  let found = svg.querySelector(`.${name}`);
  if (!found) {
    found = document.createElementNS("http://www.w3.org/2000/svg", tag);
    found.classList.add(name);
    svg.append(found);
  }
  return found;
}
