// The state: the factors' principal directions as one point that moves, flat or in space, to be turned by dragging.

import { Extent, INK, begin } from "./paint.js";

const AXIS = ["PC 1", "PC 2", "PC 3"];

export class Trajectory {
  constructor(canvas, redraw) {
    this.canvas = canvas;
    this.extent = new Extent();
    this.deep = true;
    this.yaw = -0.6;
    this.pitch = 0.45;
    canvas.addEventListener("pointerdown", (down) => {
      if (!this.deep) return;
      canvas.setPointerCapture(down.pointerId);
      let last = down;
      const turn = (event) => {
        this.yaw += (event.clientX - last.clientX) * 0.01;
        this.pitch = Math.max(-1.5, Math.min(1.5, this.pitch + (event.clientY - last.clientY) * 0.01));
        last = event;
        redraw();
      };
      canvas.addEventListener("pointermove", turn);
      const stop = () => canvas.removeEventListener("pointermove", turn);
      canvas.addEventListener("pointerup", stop, { once: true });
      canvas.addEventListener("pointercancel", stop, { once: true });
    });
  }

  begin() {
    this.extent = new Extent();
  }

  draw(trail) {
    const { pen, width, height } = begin(this.canvas);
    if (!trail) return;
    const [n, axes] = trail.shape;
    const { values } = trail;
    let most = 0;
    for (const value of values) if (Math.abs(value) > most && Number.isFinite(value)) most = Math.abs(value);
    const reach = this.extent.follow(most);
    const size = Math.min(width, height) / 2 - 14;
    const view = this.deep && axes > 2 ? this.#turned() : [[1, 0, 0], [0, -1, 0], [0, 0, 0]];
    const place = (p) => {
      const sum = (i) => p.reduce((total, value, a) => total + value * view[i][a], 0);
      return [width / 2 + size * sum(0), height / 2 + size * sum(1), sum(2)];
    };
    this.#frame(pen, place, this.deep && axes > 2 ? 3 : 2);
    const points = [];
    for (let i = 0; i < n; i++) {
      const p = [0, 0, 0];
      for (let a = 0; a < axes; a++) p[a] = values[i * axes + a] / reach;
      points.push(place(p));
    }
    pen.lineCap = "round";
    for (let i = 1; i < n; i++) {
      const age = i / (n - 1);
      pen.strokeStyle = `rgba(${86 + age * 150}, ${180 + age * 60}, ${233 + age * 20}, ${0.08 + 0.92 * age ** 2})`;
      pen.lineWidth = 0.8 + 2.2 * age;
      pen.beginPath();
      pen.moveTo(points[i - 1][0], points[i - 1][1]);
      pen.lineTo(points[i][0], points[i][1]);
      pen.stroke();
    }
    const head = points[n - 1];
    if (head && Number.isFinite(head[0])) dot(pen, head[0], head[1]);
  }

  #turned() {
    const [cy, sy, cp, sp] = [Math.cos(this.yaw), Math.sin(this.yaw), Math.cos(this.pitch), Math.sin(this.pitch)];
    return [[cy, 0, sy], [sp * sy, -cp, -sp * cy], [-cp * sy, -sp, cp * cy]];
  }

  #frame(pen, place, axes) {
    for (let a = 0; a < axes; a++) {
      const [from, to] = [[0, 0, 0], [0, 0, 0]];
      from[a] = -0.95;
      to[a] = 0.95;
      const [p, q] = [place(from), place(to)];
      pen.strokeStyle = INK.line;
      pen.lineWidth = 1.5;
      pen.beginPath();
      pen.moveTo(p[0], p[1]);
      pen.lineTo(q[0], q[1]);
      pen.stroke();
      pen.fillStyle = INK.dim;
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      const label = [0, 0, 0];
      label[a] = 1.04;
      const [x, y] = place(label);
      const room = pen.measureText(AXIS[a]).width / 2 + 2;
      const wide = pen.canvas.clientWidth;
      pen.fillText(AXIS[a], Math.max(room, Math.min(wide - room, x)), y - 9);
    }
  }
}

/** Where it is now. */
export function dot(pen, x, y, colour = "#ffffff") {
  pen.fillStyle = colour;
  pen.globalAlpha = 0.22;
  pen.beginPath();
  pen.arc(x, y, 12, 0, 7);
  pen.fill();
  pen.globalAlpha = 1;
  pen.beginPath();
  pen.arc(x, y, 5, 0, 7);
  pen.fill();
}
