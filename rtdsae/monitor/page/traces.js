// Arrays as lines over time, a plot each, with their newest values or those under the pointer.

import { FONT, GUTTER, INK, LINES, MARKS, RIGHT, make, short } from "./paint.js";

const HEIGHT = 150;
const GAP = MARKS.find((mark) => mark.name === "gap");
const LANDMARKS = MARKS.filter((mark) => mark.name === "swap" || mark.name === "restart");

export class Traces {
  /** `choose(name, columns)` is called when somebody wants other values of an array. */
  constructor(root, choose) {
    this.root = root;
    this.choose = choose;
    this.plots = [];
    new ResizeObserver(() => this.plots.forEach((plot) => plot.fit())).observe(root);
  }

  begin(history) {
    this.plots.forEach((plot) => plot.chart.destroy());
    this.plots = [];
    this.root.replaceChildren();
    for (const name of Object.keys(history.layout.traces)) this.plots.push(new Trace(this, history, name));
    if (!this.plots.length) this.root.append(make("p", { class: "empty", text: "No array is chosen: see “lines” above." }));
  }

  draw() {
    this.plots.forEach((plot) => plot.draw());
  }
}

class Trace {
  constructor(traces, history, name) {
    this.history = history;
    this.name = name;
    this.array = history.layout.arrays.find((array) => array.name === name);
    this.columns = history.layout.traces[name];
    this.range = null;
    this.values = make("ul", { class: "values" });
    this.cells = this.columns.map((column, i) => this.#cell(column, i));
    const unit = this.array.unit ? `${this.array.unit}` : "";
    const title = make("h2", {}, make("span", { text: name }), make("small", { text: unit }), this.#choice(traces.choose));
    this.plot = make("div", { class: "plot" });
    const section = make("div", { class: "trace", "data-array": name }, title, this.values, this.plot);
    traces.root.append(section);
    this.chart = new uPlot(this.#options(traces.root.clientWidth), this.#data(), this.plot);
  }

  fit() {
    const width = this.plot.clientWidth;
    if (width && width !== this.chart.width) this.chart.setSize({ width, height: HEIGHT });
  }

  draw() {
    this.chart.setData(this.#data());
    if (this.chart.cursor.idx == null) this.#tell(this.history.now[this.name]);
  }

  #data() {
    return [this.history.t, ...this.history.lines[this.name]];
  }

  #tell(values) {
    this.cells.forEach((cell, i) => {
      const value = values ? values[i] : null;
      cell.textContent = short(value);
      cell.dataset.value = value ?? "";
    });
  }

  #cell(column, i) {
    const swatch = make("i");
    swatch.style.background = LINES[i % LINES.length];
    const value = make("b", { text: "–" });
    const label = this.array.labels[column] ?? String(column);
    this.values.append(make("li", {}, swatch, make("span", { text: label }), value));
    return value;
  }

  /** Which values of a wide array: typed, or the next ones. */
  #choice(choose) {
    const { name, columns, array } = this;
    const box = make("span", { class: "columns" });
    if (array.size <= LINES.length) return box;
    const n = LINES.length;
    const page = (first) => choose(name, upTo(Math.max(0, Math.min(first, array.size - n)), n));
    const field = make("input", { value: asRanges(columns), "aria-label": `which values of ${name}`, title: "like 0-3, 17", maxlength: 60 });
    field.addEventListener("change", () => {
      const wanted = fromRanges(field.value, array.size, n);
      if (wanted.length) choose(name, wanted);
      else field.value = asRanges(columns);
    });
    const back = make("button", { type: "button", text: "‹", "aria-label": `earlier values of ${name}` });
    const on = make("button", { type: "button", text: "›", "aria-label": `later values of ${name}` });
    back.disabled = columns[0] === 0;
    on.disabled = columns.at(-1) >= array.size - 1;
    back.addEventListener("click", () => page(columns[0] - n));
    on.addEventListener("click", () => page(columns[0] + n));
    box.append(back, field, make("span", { text: `of ${array.size}` }), on);
    return box;
  }

  #options(width) {
    const axis = { stroke: INK.dim, font: FONT, grid: { stroke: INK.line, width: 1 }, ticks: { stroke: INK.line, width: 1, size: 4 } };
    return {
      width,
      height: HEIGHT,
      legend: { show: false },
      padding: [8, RIGHT, 0, 0],
      cursor: { sync: { key: "time" }, drag: { x: false, y: false }, y: false, points: { size: 6 } },
      scales: {
        x: { time: false, range: () => this.#window() },
        y: { range: (_, low, high) => this.#span(low, high) },
      },
      axes: [
        { ...axis, size: 30, splits: (u) => this.#seconds(u), values: (u, at) => at.map((t) => this.#ago(t)) },
        { ...axis, size: GUTTER, space: 28, values: (u, at) => at.map((v) => (Math.abs(v) >= 1e5 ? v.toExponential(0) : `${+v.toPrecision(6)}`)) },
      ],
      series: [{}, ...this.columns.map((_, i) => ({ stroke: LINES[i % LINES.length], width: 1.4, points: { show: false } }))],
      hooks: { drawClear: [(u) => this.#landmarks(u)], setCursor: [(u) => this.#point(u)] },
    };
  }

  #window() {
    return [this.history.end - this.history.layout.window_s, this.history.end];
  }

  /** The vertical span: grows at once, and shrinks only when most of it is empty. */
  #span(low, high) {
    if (low === null || high === null) return this.range ?? [-1, 1];
    const size = Math.max(high - low, 1e-6 * Math.max(1, Math.abs(high)));
    const fits = this.range && low >= this.range[0] && high <= this.range[1] && size > 0.35 * (this.range[1] - this.range[0]);
    if (!fits) this.range = [low - 0.12 * size, high + 0.12 * size];
    return this.range;
  }

  #seconds() {
    const { window_s: length } = this.history.layout;
    const step = length / (this.plot.clientWidth < 420 ? 4 : 5);
    return Array.from({ length: Math.round(length / step) + 1 }, (_, i) => this.history.end - length + i * step);
  }

  #ago(t) {
    const seconds = t - this.history.end;
    return seconds > -1e-6 ? "now" : `${+seconds.toFixed(1)} s`;
  }

  /** Gaps as bands, a new model or a new daemon as lines: behind the data. */
  #landmarks(u) {
    const { left, top, width, height } = u.bbox;
    const pen = u.ctx;
    const x = (t) => Math.max(left, Math.min(left + width, u.valToPos(t, "x", true)));
    pen.save();
    for (const { t, flags } of this.history.marks) {
      if (t < u.scales.x.min) continue;
      if (flags & GAP.bit) {
        pen.fillStyle = "rgba(240, 180, 41, .22)";
        pen.fillRect(x(t - this.history.groupS), top, Math.max(1, x(t) - x(t - this.history.groupS)), height);
      }
      for (const { bit, colour } of LANDMARKS) {
        if (!(flags & bit)) continue;
        pen.fillStyle = colour;
        pen.fillRect(x(t), top, 2 * devicePixelRatio, height);
      }
    }
    pen.restore();
  }

  #point(u) {
    const i = u.cursor.idx;
    this.#tell(i == null ? this.history.now[this.name] : this.history.lines[this.name].map((column) => column[i]));
  }
}

function upTo(first, n) {
  return Array.from({ length: n }, (_, i) => first + i);
}

/** [0, 1, 2, 7] as "0-2, 7". */
export function asRanges(columns) {
  const parts = [];
  for (const column of columns) {
    const last = parts.at(-1);
    if (last && column === last[1] + 1) last[1] = column;
    else parts.push([column, column]);
  }
  return parts.map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`)).join(", ");
}

/** "0-2, 7" as [0, 1, 2, 7], as far as they are there and `most` of them at most; nothing where it is no such text. */
export function fromRanges(text, size, most) {
  const found = [];
  for (const part of text.split(",")) {
    const match = /^\s*(\d{1,7})\s*(?:-\s*(\d{1,7})\s*)?$/.exec(part);
    if (!match) return [];
    const [first, last] = [Number(match[1]), Number(match[2] ?? match[1])];
    for (let i = first; i <= Math.min(last, size - 1) && found.length < most; i++) if (!found.includes(i)) found.push(i);
  }
  return found;
}
