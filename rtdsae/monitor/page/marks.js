// A row for each kind of mark, under the lines and on the same time axis.

import { GUTTER, INK, MARKS, RIGHT, begin } from "./paint.js";

export function drawMarks(canvas, history) {
  const { pen, width, height } = begin(canvas);
  const row = height / MARKS.length;
  const span = width - GUTTER - RIGHT;
  const { window_s: length } = history.layout;
  const x = (t) => GUTTER + ((t - history.end + length) / length) * span;
  pen.textBaseline = "middle";
  const counts = MARKS.map(() => 0);
  for (const { t, flags } of history.marks) {
    const right = x(t);
    if (right < GUTTER) continue;
    MARKS.forEach(({ name, bit, colour }, i) => {
      if (!(flags & bit)) return;
      counts[i]++;
      pen.fillStyle = colour;
      const wide = name === "gap" ? Math.max(2, right - x(t - history.groupS)) : 2;
      pen.fillRect(Math.max(GUTTER, right - wide), i * row + 3, Math.min(wide, right - GUTTER + 1), row - 6);
    });
  }
  MARKS.forEach(({ name, colour }, i) => {
    pen.fillStyle = counts[i] ? colour : INK.dim;
    if (name === "anchor") pen.fillStyle = INK.dim;
    pen.textAlign = "right";
    pen.fillText(name, GUTTER - 8, (i + 0.5) * row);
    pen.fillStyle = INK.line;
    pen.fillRect(GUTTER, (i + 1) * row - 1, span, 1);
  });
}
