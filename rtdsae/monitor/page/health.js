// Numbers, counters and the sentence that says what is wrong.

import { duration, make } from "./paint.js";

const COUNTERS = {
  bins: "bins published",
  gaps: "gaps (not observed)",
  bins_late: "bins sent late",
  late: "late samples",
  duplicates: "duplicate samples",
  nan: "samples without a number",
  overflow: "impossible counts",
  partial: "incomplete bins' samples",
  resets: "clock resets",
  anchors: "anchored",
};
const BAD = new Set(["gaps", "bins_late", "late", "duplicates", "nan", "overflow", "partial", "resets"]);
const WORDS = { live: "LIVE", silent: "SILENT", gone: "NO DAEMON", paused: "PAUSED", lost: "NO MONITOR", connecting: "connecting" };

const at = (id) => document.getElementById(id);
const whole = (n) => (n === null || n === undefined ? "–" : n.toLocaleString("en"));

export function tellState(state, say = "") {
  const pill = at("state");
  if (pill.dataset.state !== state) {
    pill.dataset.state = state;
    pill.textContent = WORDS[state];
  }
  document.title = `${WORDS[state]} · rtdsae monitor`;
  tellBanner(say, state);
}

export function tellBanner(say, state) {
  const banner = at("banner");
  banner.hidden = !say;
  banner.dataset.state = state;
  if (banner.textContent !== say) banner.textContent = say;
}

export function tellNumbers(health) {
  at("bins-per-s").textContent = whole(health.bins_per_s);
  const p99 = health.latency?.daemon.p99 ?? health.status?.latency_us["p99"];
  at("daemon-p99").textContent = duration(p99);
  at("age").textContent = health.age_s === null ? "–" : health.age_s < 1 ? "< 1 s ago" : `${health.age_s.toFixed(1)} s ago`;
  at("gaps").textContent = whole(health.status?.counters.gaps);
}

export function tellLatency(health) {
  for (const kind of ["daemon", "arrival"]) {
    const cells = at(`latency-${kind}`).querySelectorAll("td");
    const found = health.latency?.[kind];
    ["p50", "p99", "max"].forEach((name, i) => {
      cells[i].textContent = found ? duration(found[name]) : "–";
    });
    at(`latency-${kind}`).title = health.latency && !found ? "the daemon's clock is another computer's" : "";
  }
}

export function tellHealth(health) {
  const { status, monitor } = health;
  const rows = [["publishes on", health.endpoint], ["bundle", health.bundle ? `${health.bundle} ${health.bundle_hash}` : "–"]];
  rows.push(["bin width", health.bin_width_s ? `${+(1e3 * health.bin_width_s).toPrecision(4)} ms` : "–"]);
  if (status) {
    if (status.session) rows.push(["session", status.session]);
    const stream = status.source_id ?? "none yet";
    rows.push(["stream", `${stream}, ${status.connected ? "connected" : "silent"}`, !status.connected]);
    if (status.problem) rows.push(["problem", status.problem, true]);
    if (status.clock_offset_s !== null) rows.push(["clock offset", duration(Math.abs(1e6 * status.clock_offset_s))]);
    if (status.losses !== null) rows.push(["stream lost", `${whole(status.losses)} times`, status.losses > 0]);
    for (const [name, text] of Object.entries(COUNTERS)) {
      const n = status.counters[name];
      if (n !== null) rows.push([text, whole(n), BAD.has(name) && n > 0]);
    }
    const us = status.latency_us;
    rows.push(["latency p50 / p99", `${duration(us.p50)} / ${duration(us.p99)}`]);
    rows.push(["latency p99.9 / max", `${duration(us["p99.9"])} / ${duration(us.max)}`]);
  }
  rows.push(["received here", whole(monitor.received)], ["lost on the way here", whole(monitor.holes), monitor.holes > 0]);
  rows.push(["daemon restarts seen", whole(monitor.restarts)]);
  if (monitor.errors) rows.push(["unreadable messages", `${whole(monitor.errors)}: ${monitor.last_error}`, true]);
  if (monitor.refused) rows.push(["bins without times", whole(monitor.refused), true]);
  at("health").replaceChildren(
    ...rows.map(([name, text, bad]) =>
      make("div", {}, make("dt", { text: name }), make("dd", { text: String(text), "data-mark": bad ? "bad" : "" })),
    ),
  );
}
