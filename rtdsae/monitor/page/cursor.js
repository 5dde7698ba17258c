// Decoded behaviour of two values: a velocity as an arrow from the centre, a position as a cursor, with its target.

import { Extent, INK, begin, short } from "./paint.js";
import { dot } from "./trajectory.js";

export class Cursor {
  constructor(canvas) {
    this.canvas = canvas;
    this.begin();
  }

  begin() {
    this.extent = new Extent();
  }

  draw(history) {
    const { pen, width, height } = begin(this.canvas);
    const { cursor, target } = history;
    if (!cursor) return;
    const array = history.layout.arrays.find((found) => found.name === "behaviour");
    const velocity = isVelocity(array);
    const { values } = cursor;
    const n = cursor.shape[0];
    const goal = target?.values;
    let most = 0;
    for (const value of [...values, ...(goal ?? [])]) if (Math.abs(value) > most && Number.isFinite(value)) most = Math.abs(value);
    const reach = this.extent.follow(most);
    const size = Math.min(width, height) / 2 - 16;
    const place = (x, y) => [width / 2 + (size * x) / reach, height / 2 - (size * y) / reach];
    this.#frame(pen, width, height, size, reach, array);
    if (goal && Number.isFinite(goal[0] + goal[1])) this.#target(pen, ...place(goal[0], goal[1]));
    for (let i = 1; i < n; i++) {
      const age = i / (n - 1);
      const [x0, y0] = place(values[2 * i - 2], values[2 * i - 1]);
      const [x1, y1] = place(values[2 * i], values[2 * i + 1]);
      pen.strokeStyle = `rgba(53, 197, 143, ${0.06 + (velocity ? 0.5 : 0.9) * age ** 2})`;
      pen.lineWidth = 1 + 2 * age;
      pen.beginPath();
      pen.moveTo(x0, y0);
      pen.lineTo(x1, y1);
      pen.stroke();
    }
    const [x, y] = place(values[2 * n - 2], values[2 * n - 1]);
    if (!Number.isFinite(x + y)) return;
    if (velocity) this.#arrow(pen, width / 2, height / 2, x, y);
    else dot(pen, x, y);
  }

  #frame(pen, width, height, size, reach, array) {
    pen.strokeStyle = INK.line;
    pen.lineWidth = 1;
    pen.strokeRect(width / 2 - size, height / 2 - size, 2 * size, 2 * size);
    pen.beginPath();
    pen.moveTo(width / 2 - size, height / 2);
    pen.lineTo(width / 2 + size, height / 2);
    pen.moveTo(width / 2, height / 2 - size);
    pen.lineTo(width / 2, height / 2 + size);
    pen.stroke();
    pen.fillStyle = INK.dim;
    pen.textAlign = "right";
    pen.textBaseline = "bottom";
    pen.fillText(`${array.labels[0] ?? "0"} →  ±${short(reach)} ${array.unit}`, width / 2 + size - 5, height / 2 + size - 4);
    pen.textAlign = "left";
    pen.textBaseline = "top";
    pen.fillText(`↑ ${array.labels[1] ?? "1"}`, width / 2 + 6, height / 2 - size + 5);
  }

  #target(pen, x, y) {
    pen.strokeStyle = INK.warn;
    pen.lineWidth = 3;
    pen.beginPath();
    pen.arc(x, y, 17, 0, 7);
    pen.stroke();
  }

  #arrow(pen, x0, y0, x, y) {
    const angle = Math.atan2(y - y0, x - x0);
    const length = Math.hypot(x - x0, y - y0);
    const tip = Math.min(13, length);
    pen.strokeStyle = pen.fillStyle = "#ffffff";
    pen.lineWidth = 3.5;
    pen.beginPath();
    pen.moveTo(x0, y0);
    pen.lineTo(x - 0.7 * tip * Math.cos(angle), y - 0.7 * tip * Math.sin(angle));
    pen.stroke();
    pen.beginPath();
    pen.moveTo(x, y);
    for (const side of [-0.42, 0.42]) pen.lineTo(x - tip * Math.cos(angle + side), y - tip * Math.sin(angle + side));
    pen.fill();
  }
}

/** Labels that begin with vel say so. */
export function isVelocity(array) {
  return array.labels.length > 0 && array.labels.every((label) => /^vel|velocity/i.test(label));
}
