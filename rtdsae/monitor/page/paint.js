// What all drawings share: a canvas at the screen's resolution, colours that colour-blind people tell apart, numbers.

export const INK = { text: "#dfe6f0", dim: "#93a0b4", line: "#232b38", accent: "#56b4e9", warn: "#f0b429", bad: "#ff7a59" };
export const LINES = ["#56b4e9", "#f0b429", "#35c58f", "#ee7fc0", "#f2f26a", "#ff7a59", "#8f9dff", "#f4f4f4"];
export const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
export const GUTTER = 58; // left of everything that is drawn over time, so that the times line up
export const RIGHT = 18; // and right of it

/** The marks, a row each; the bits are those of docs/monitor.md. */
export const MARKS = [
  { name: "gap", bit: 1, colour: "#f0b429" },
  { name: "anchor", bit: 2, colour: "#5f7391" },
  { name: "late", bit: 4, colour: "#ff7a59" },
  { name: "swap", bit: 8, colour: "#ee7fc0" },
  { name: "restart", bit: 64, colour: "#f4f4f4" },
  { name: "lost", bit: 32, colour: "#f2f26a" },
];

/** A clean 2-D context in CSS pixels, and its size. */
export function begin(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = FONT;
  pen.lineWidth = 1;
  pen.globalAlpha = 1;
  return { pen, width, height };
}

/** A number in four figures, and never longer than it must be. */
export function short(value) {
  if (!Number.isFinite(value)) return "no value";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e5) return value.toExponential(2);
  return value.toFixed(size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3);
}

/** Microseconds for people. */
export function duration(us) {
  if (us === null || us === undefined) return "–";
  if (us < 1000) return `${us.toFixed(0)} µs`;
  if (us < 1e6) return `${(us / 1000).toFixed(us < 1e4 ? 2 : us < 1e5 ? 1 : 0)} ms`;
  return `${(us / 1e6).toFixed(us < 1e7 ? 2 : 1)} s`;
}

/** An element with text and attributes; text is never read as HTML. */
export function make(tag, { text, ...attributes } = {}, ...children) {
  const found = document.createElement(tag);
  if (text !== undefined) found.textContent = text;
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  found.append(...children);
  return found;
}

/** Follows a changing extent: grows at once, shrinks slowly, so that a picture keeps still; the faster, the more. */
export class Extent {
  constructor() {
    this.value = 0;
  }

  follow(found) {
    if (!(found > 0 && Number.isFinite(found))) return this.value || 1;
    this.value = found > this.value ? found * 1.15 : found < this.value * 0.5 ? this.value * (found / this.value) ** 0.02 : this.value;
    return this.value;
  }
}
