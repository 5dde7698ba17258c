// An array as a heat map over time: a row a channel, brighter where it is larger.

import { GUTTER, INK, RIGHT, begin, short } from "./paint.js";

const FOOT = 18;
const SCALE_S = 1; // between two looks at the values' range
const SAMPLE = 4099; // values of them, a prime: no row is looked at more often than others
const STOPS = [[5, 8, 22], [38, 24, 92], [112, 31, 112], [190, 55, 84], [240, 110, 48], [252, 184, 72], [255, 250, 200]];
const COLOURS = ramp(256);

export class Heat {
  constructor(canvas) {
    this.canvas = canvas;
    this.image = document.createElement("canvas");
    this.begin();
  }

  begin() {
    this.range = null;
    this.rangeAt = -Infinity;
  }

  draw(history) {
    const { pen, width, height } = begin(this.canvas);
    if (!history.heat.length) return;
    const array = history.layout.arrays.find((found) => found.name === history.layout.heat);
    this.#look(history);
    const [low, high] = this.range;
    this.#paint(history, low, high);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(this.image, GUTTER, 0, width - GUTTER - RIGHT, height - FOOT);
    pen.fillStyle = INK.dim;
    pen.textAlign = "right";
    pen.textBaseline = "top";
    pen.fillText(array.labels[0] ?? "0", GUTTER - 8, 0, GUTTER - 10);
    pen.textBaseline = "bottom";
    pen.fillText(array.labels.at(-1) ?? String(array.size - 1), GUTTER - 8, height - FOOT, GUTTER - 10);
    this.#legend(pen, width, height, `${short(low)}`, `${short(high)} ${array.unit}`);
  }

  /** The colours' range, from a sample of what is there. */
  #look(history) {
    const now = performance.now() / 1000;
    if (this.range && now - this.rangeAt < SCALE_S) return;
    this.rangeAt = now;
    const rows = history.heat[0].values.length;
    const step = Math.max(1, Math.floor((history.heat.length * rows) / SAMPLE));
    const sample = [];
    for (let i = 0; i < history.heat.length * rows; i += step) {
      const value = history.heat[Math.floor(i / rows)].values[i % rows];
      if (Number.isFinite(value)) sample.push(value);
    }
    if (!sample.length) {
      this.range ??= [0, 1];
      return;
    }
    sample.sort((a, b) => a - b);
    const low = sample[0] >= 0 ? 0 : sample[Math.floor(0.01 * sample.length)];
    const high = Math.max(sample[Math.min(sample.length - 1, Math.floor(0.995 * sample.length))], low + 1e-9);
    this.range = [low, high];
  }

  #paint(history, low, high) {
    const columns = Math.max(1, Math.round(history.layout.window_s / history.groupS));
    const rows = history.heat[0].values.length;
    if (this.image.width !== columns || this.image.height !== rows) Object.assign(this.image, { width: columns, height: rows });
    const pen = this.image.getContext("2d");
    const pixels = pen.createImageData(columns, rows);
    const out = new Uint32Array(pixels.data.buffer);
    const factor = 255 / (high - low);
    for (const { t, values } of history.heat) {
      const x = columns - 1 - Math.round((history.end - t) / history.groupS - (history.layout.bins_a_point > 1 ? 1 : 0));
      if (x < 0 || x >= columns) continue;
      for (let row = 0, at = x; row < rows; row++, at += columns) {
        const level = (values[row] - low) * factor;
        if (level === level) out[at] = COLOURS[level < 0 ? 0 : level > 255 ? 255 : level | 0];
      }
    }
    pen.putImageData(pixels, 0, 0);
  }

  #legend(pen, width, height, low, high) {
    const y = height - FOOT + 6;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    pen.fillText(high, width - RIGHT, y + 4);
    const end = width - RIGHT - pen.measureText(high).width - 8;
    const begin = end - 110;
    for (let i = 0; i < 110; i++) {
      const [r, g, b] = colourAt(i / 109);
      pen.fillStyle = `rgb(${r},${g},${b})`;
      pen.fillRect(begin + i, y, 1, 8);
    }
    pen.fillStyle = INK.dim;
    pen.fillText(low, begin - 8, y + 4);
  }
}

function colourAt(level) {
  const at = level * (STOPS.length - 1);
  const i = Math.min(STOPS.length - 2, Math.floor(at));
  return STOPS[i].map((from, c) => Math.round(from + (at - i) * (STOPS[i + 1][c] - from)));
}

/** The colours as pixels of a little-endian machine, which all are that browsers run on. */
function ramp(n) {
  return Uint32Array.from({ length: n }, (_, i) => {
    const [r, g, b] = colourAt(i / (n - 1));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });
}
