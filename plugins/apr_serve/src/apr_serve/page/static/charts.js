// Lines over time, drawn with SVG, with their latest values in words and all values in a table.
import { element, svg } from "./dom.js";

const HEIGHT = 158; // pixels, of which the axes take:
const LEFT = 54;
const BOTTOM = 20;
const TOP = 6;
const ROWS = 20; // of the table
const SPANS = [60, 120, 300]; // seconds: it grows with the data

export class Chart {
  /**
   * `series`: names. `words(value)`: a value for people. `least`: the scale's smallest top.
   * A line is drawn at the last sample's `limit` if it has one.
   */
  constructor({ title, series, words, least = 1, stacked = false }) {
    Object.assign(this, { title, series, words, least, stacked });
    this.samples = []; // {at: seconds, values: [number or null], limit}
    this.picked = null;
    this.plot = svg("svg", { class: "plot", role: "img", "aria-label": title });
    this.legend = element("ul", { class: "legend" });
    this.rows = element("tbody");
    const head = element(
      "tr",
      {},
      ["Seconds ago", ...series].map((name) => element("th", { scope: "col" }, name)),
    );
    const table = element("table", {}, element("thead", {}, head), this.rows);
    const region = element(
      "div",
      { class: "wide", tabindex: "0", role: "region", "aria-label": `${title}, table` },
      table,
    );
    this.details = element("details", {}, element("summary", {}, "As a table"), region);
    this.details.addEventListener("toggle", () => this.drawTable());
    const caption = element("figcaption", {}, element("h2", {}, title), this.legend);
    this.root = element("figure", { class: "chart" }, caption, this.plot, this.details);
    this.plot.addEventListener("pointermove", (event) => this.pick(event.offsetX));
    this.plot.addEventListener("pointerleave", () => this.pick(null));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  update(samples) {
    this.samples = samples;
    this.draw();
    this.drawTable();
  }

  pick(x) {
    this.picked = x;
    this.draw();
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!width || !this.samples.length) return;
    const now = this.samples.at(-1).at;
    const age = now - this.samples[0].at;
    this.seconds = SPANS.find((seconds) => seconds >= age) ?? SPANS.at(-1);
    const top = scaleTop(
      Math.max(this.least, ...this.samples.map((sample) => this.highest(sample))),
    );
    const scale = {
      x: (at) => LEFT + (width - LEFT) * (1 - (now - at) / this.seconds),
      y: (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top),
    };
    this.plot.replaceChildren(
      ...this.axes(scale, width, top),
      ...this.lines(scale),
      ...this.cursor(scale),
      ...this.emptiness(width),
    );
    this.plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const shown = this.sampleAt(this.picked, scale) ?? this.samples.at(-1);
    this.drawLegend(shown);
    this.plot.setAttribute(
      "aria-label",
      `${this.title}, now: ${this.sentence(this.samples.at(-1))}`,
    );
  }

  highest({ values, limit }) {
    const numbers = values.map((value) => value ?? 0);
    const highest = this.stacked
      ? numbers.reduce((sum, value) => sum + value, 0)
      : Math.max(...numbers);
    return limit && highest > limit / 3 ? Math.max(limit, highest) : highest;
  }

  axes(scale, width, top) {
    const lines = [0, 0.5, 1].flatMap((part) => {
      const y = scale.y(top * part);
      const label = svg(
        "text",
        { x: LEFT - 8, y: y + 4, "text-anchor": "end" },
        this.words(top * part),
      );
      return [svg("line", { class: "grid", x1: LEFT, x2: width, y1: y, y2: y }), label];
    });
    const minutes = this.seconds / 60;
    const foot = { y: HEIGHT - 3 };
    lines.push(
      svg("text", { ...foot, x: LEFT }, `${minutes} minute${minutes === 1 ? "" : "s"} ago`),
    );
    lines.push(svg("text", { ...foot, x: width, "text-anchor": "end" }, "now"));
    const { limit } = this.samples.at(-1);
    if (limit && limit <= top) {
      const y = scale.y(limit);
      lines.push(svg("line", { class: "limit", x1: LEFT, x2: width, y1: y, y2: y }));
    }
    return lines;
  }

  emptiness(width) {
    if (this.samples.some(({ values }) => values.some((value) => value !== null))) return [];
    const middle = { x: (LEFT + width) / 2, y: (HEIGHT - BOTTOM) / 2 - 6, "text-anchor": "middle" };
    return [svg("text", middle, "nothing in this time")];
  }

  lines(scale) {
    return this.series.flatMap((_, index) => {
      const points = this.samples.map((sample) => [sample.at, this.height(sample, index)]);
      const base = scale.y(0);
      return pieces(points).flatMap((piece) => {
        const path = piece.map(
          ([at, value]) => `${scale.x(at).toFixed(1)},${scale.y(value).toFixed(1)}`,
        );
        const [first, last] = [scale.x(piece[0][0]), scale.x(piece.at(-1)[0])];
        const style = `series-${index + 1}`;
        const area = svg("path", {
          class: `area ${style}`,
          d: `M${first},${base}L${path.join("L")}L${last},${base}Z`,
        });
        // a value alone is a short stroke
        const stroke = piece.length > 1 ? path.join("L") : `${path[0]}h2`;
        const line = svg("path", { class: `line ${style}`, d: `M${stroke}` });
        return this.stacked || index === 0 ? [area, line] : [line];
      });
    });
  }

  /** Where a series is drawn: on top of those before it when they are parts of a whole. */
  height({ values }, index) {
    if (!this.stacked || values[index] === null) return values[index];
    return values.slice(0, index + 1).reduce((sum, value) => sum + (value ?? 0), 0);
  }

  sampleAt(x, scale) {
    if (x === null) return null;
    const distance = (sample) => Math.abs(scale.x(sample.at) - x);
    return this.samples.reduce((best, sample) =>
      distance(sample) < distance(best) ? sample : best,
    );
  }

  cursor(scale) {
    const sample = this.sampleAt(this.picked, scale);
    if (!sample) return [];
    const x = scale.x(sample.at);
    return [svg("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM })];
  }

  drawLegend({ values }) {
    const entries = this.series.map((name, index) =>
      element(
        "li",
        { class: `series-${index + 1}` },
        `${name} `,
        element("b", {}, this.worded(values[index])),
      ),
    );
    this.legend.replaceChildren(...entries);
  }

  sentence({ values }) {
    return this.series.map((name, index) => `${name} ${this.worded(values[index])}`).join(", ");
  }

  worded(value) {
    return value === null ? "–" : this.words(value);
  }

  drawTable() {
    if (!this.details.open || !this.samples.length) return;
    const now = this.samples.at(-1).at;
    const rows = this.samples
      .slice(-ROWS)
      .reverse()
      .map(({ at, values }) =>
        element(
          "tr",
          {},
          element("td", {}, (now - at).toFixed(0)),
          values.map((value) => element("td", {}, this.worded(value))),
        ),
      );
    this.rows.replaceChildren(...rows);
  }
}

/** The runs of points that have a value. */
function pieces(points) {
  const found = [[]];
  for (const point of points) {
    if (point[1] === null) found.push([]);
    else found.at(-1).push(point);
  }
  return found.filter((piece) => piece.length);
}

/** The next of 1, 2, 4, 6, 8 times a power of ten: half of it is easy to read, too. */
function scaleTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 4, 6, 8, 10].find((times) => times * power >= value * 0.999);
  return step * power;
}
