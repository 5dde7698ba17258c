// The latency histogram with the bin width drawn in, and bins per second.

import { INK, begin } from "./paint.js";

const TICKS = [[10, "10 µs"], [100, "100 µs"], [1e3, "1 ms"], [1e4, "10 ms"], [1e5, "100 ms"], [1e6, "1 s"]];
const FOOT = 18;
const HEAD = 16;

export function drawLatency(canvas, health) {
  const { pen, width, height } = begin(canvas);
  const floor = height - FOOT;
  const { edges_us: edges, daemon, arrival } = health.latency;
  const [low, high] = [Math.log10(edges[0]), Math.log10(edges.at(-1))];
  const x = (us) => 4 + ((Math.log10(us) - low) / (high - low)) * (width - 8);
  pen.textBaseline = "bottom";
  for (const [us, text] of TICKS) {
    pen.fillStyle = INK.line;
    pen.fillRect(x(us), HEAD, 1, floor - HEAD);
    pen.fillStyle = INK.dim;
    pen.textAlign = us === TICKS[0][0] ? "left" : us === TICKS.at(-1)[0] ? "right" : "center";
    pen.fillText(text, x(us), height);
  }
  const level = (counts) => {
    const most = Math.max(1, ...counts);
    return (count) => floor - (Math.sqrt(count) / Math.sqrt(most)) * (floor - HEAD - 2);
  };
  const inside = level(daemon.counts);
  pen.fillStyle = "rgba(86, 180, 233, .75)";
  daemon.counts.forEach((count, i) => {
    if (count) pen.fillRect(x(edges[i]), inside(count), x(edges[i + 1]) - x(edges[i]) - 1, floor - inside(count));
  });
  if (arrival) {
    const whole = level(arrival.counts);
    pen.strokeStyle = INK.warn;
    pen.lineWidth = 2;
    pen.beginPath();
    arrival.counts.forEach((count, i) => {
      if (i === 0) pen.moveTo(x(edges[0]), whole(count));
      pen.lineTo(x(edges[i]), whole(count));
      pen.lineTo(x(edges[i + 1]), whole(count));
    });
    pen.stroke();
  }
  const bin = Math.min(edges.at(-1), Math.max(edges[0], 1e6 * health.bin_width_s));
  pen.strokeStyle = INK.bad;
  pen.lineWidth = 2;
  pen.setLineDash([6, 4]);
  pen.beginPath();
  pen.moveTo(x(bin), HEAD - 2);
  pen.lineTo(x(bin), floor);
  pen.stroke();
  pen.setLineDash([]);
  pen.fillStyle = INK.text;
  pen.textAlign = x(bin) > width - 90 ? "right" : x(bin) < 90 ? "left" : "center";
  pen.fillText(`bin width ${+(1e3 * health.bin_width_s).toPrecision(4)} ms`, x(bin), HEAD - 2);
}

export function drawRate(canvas, health) {
  const { pen, width, height } = begin(canvas);
  const expected = 1 / health.bin_width_s;
  const counts = health.per_second;
  const most = Math.max(expected * 1.25, ...counts);
  const floor = height - 16;
  const y = (count) => floor - (count / most) * (floor - 4);
  const step = width / counts.length;
  counts.forEach((count, i) => {
    pen.fillStyle = i === counts.length - 1 ? INK.text : INK.accent;
    pen.fillRect(i * step, y(count), Math.max(1, step - 1), floor - y(count));
  });
  pen.strokeStyle = INK.dim;
  pen.setLineDash([3, 4]);
  pen.beginPath();
  pen.moveTo(0, y(expected));
  pen.lineTo(width, y(expected));
  pen.stroke();
  pen.setLineDash([]);
  pen.fillStyle = INK.dim;
  pen.textBaseline = "bottom";
  pen.textAlign = "left";
  pen.fillText(width < 420 ? "-60 s" : "1 minute ago", 0, height);
  pen.textAlign = "center";
  pen.fillText(`dashed: ${+expected.toPrecision(4)}, a bin every ${+(1e3 * health.bin_width_s).toPrecision(4)} ms`, width / 2, height);
  pen.textAlign = "right";
  pen.fillText("now", width, height);
}
