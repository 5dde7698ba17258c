// The page: one WebSocket in, one small message out whenever somebody wants to see something else.

import { Cursor, isVelocity } from "./cursor.js";
import { decode } from "./frame.js";
import { Heat } from "./heat.js";
import { tellBanner, tellHealth, tellLatency, tellNumbers, tellState } from "./health.js";
import { History } from "./history.js";
import { drawLatency, drawRate } from "./latency.js";
import { drawMarks } from "./marks.js";
import { LINES, make } from "./paint.js";
import { Traces } from "./traces.js";
import { Trajectory } from "./trajectory.js";

const WINDOWS = [2, 5, 10, 20, 30, 60];
const AGAIN_MS = 1000;
const REFUSED_MS = 5000;

const at = (id) => document.getElementById(id);
const view = { window_s: 10, traces: null, heat: null, paused: false };
let socket = null;
let history = null;
let health = null;
let refusedAt = -Infinity;
let due = false;
const traces = new Traces(at("traces"), (name, columns) => {
  view.traces = { ...(view.traces ?? history.layout.traces), [name]: columns };
  ask();
});
const trajectory = new Trajectory(at("trajectory"), redraw);
const cursor = new Cursor(at("cursor"));
const heat = new Heat(at("heat"));

// the connection -----------------------------------------------------------------------------------------------------

function connect() {
  socket = new WebSocket(`ws://${location.host}/feed`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    document.body.dataset.stale = "false";
    ask();
  };
  socket.onmessage = ({ data }) => {
    if (typeof data === "string") refuse(JSON.parse(data).error);
    else take(decode(data));
  };
  socket.onclose = ({ reason }) => {
    document.body.dataset.stale = "true";
    tellState("lost", reason || "The monitor itself is gone (rtdsae monitor has ended, or cannot be reached). This page connects again by itself.");
    setTimeout(connect, AGAIN_MS);
  };
}

function ask() {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(view));
}

function refuse(error) {
  refusedAt = performance.now();
  tellBanner(error, "refused");
}

function take(frame) {
  if (frame.newest && !view.paused) {
    if (frame.layout) begin(frame.layout);
    history.take(frame);
  }
  if (frame.health) {
    health = frame.health;
    tellNumbers(health);
    tellHealth(health);
    tellLatency(health);
    if (performance.now() - refusedAt > REFUSED_MS) tellHow();
  }
  redraw();
}

function tellHow() {
  const strange = history?.newest?.not_finite ?? 0;
  let { state, say } = health;
  if (state === "live" && strange) say = `${strange} of the newest bin's values are not numbers: the model's output is broken.`;
  tellState(view.paused && state === "live" ? "paused" : state, say);
}

// what is drawn ------------------------------------------------------------------------------------------------------

function begin(layout) {
  history = new History(layout);
  document.body.dataset.empty = "false";
  for (const drawing of [heat, trajectory, cursor]) drawing.begin();
  traces.begin(history);
  offer(layout);
  const sizes = Object.fromEntries(layout.arrays.map((array) => [array.name, array.size]));
  show("state-panel", layout.trajectory ? "" : "Nothing published has two values or more that belong to a state: factors or z.");
  at("state-note").textContent = `${layout.trajectory ?? "factors"} as one moving point`;
  at("dimensions").hidden = (sizes[layout.trajectory] ?? 0) < 3;
  let why = "";
  if (!("behaviour" in sizes)) why = "No behaviour is published: the bundle decodes none.";
  else if (sizes.behaviour !== 2) why = `Behaviour has ${sizes.behaviour} values: see it as lines. A cursor needs two.`;
  show("cursor-panel", why);
  const behaviour = layout.arrays.find((array) => array.name === "behaviour");
  at("cursor-note").textContent = why ? "" : isVelocity(behaviour) ? "decoded velocity, an arrow from rest" : "decoded position" + ("target" in sizes ? ", and its target" : "");
  const chosen = layout.arrays.find((array) => array.name === layout.heat);
  show("heat-panel", chosen ? "" : "Nothing is published that has two values or more.");
  at("heat-name").textContent = chosen ? chosen.name[0].toUpperCase() + chosen.name.slice(1) : "Heat map";
  at("heat-note").textContent = chosen ? heatNote(chosen, sizes) : "";
}

function heatNote(chosen, sizes) {
  const rows = Math.ceil(chosen.size / Math.ceil(chosen.size / 256));
  const grouped = rows < chosen.size ? `, ${Math.ceil(chosen.size / 256)} averaged in a row` : "";
  const rates = "rates" in sizes ? "" : " · for firing rates: rtdsae serve --publish factors,z,behaviour,rates";
  return `${chosen.size} ${chosen.name === "rates" ? "channels" : "values"} over time${grouped}${rates}`;
}

/** A panel with its picture, or with the reason why there is none. */
function show(id, why) {
  const panel = at(id);
  panel.querySelector("canvas").hidden = Boolean(why);
  const empty = panel.querySelector(".empty");
  empty.hidden = !why;
  empty.textContent = why;
}

function redraw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    if (history?.newest) {
      traces.draw();
      drawMarks(at("marks"), history);
      heat.draw(history);
      trajectory.draw(history.trajectory);
      cursor.draw(history);
      document.body.dataset.seq = history.newest.seq; // what is drawn
    }
    if (health?.latency) {
      drawLatency(at("latency"), health);
      drawRate(at("rate"), health);
    }
  });
}

// what can be chosen -------------------------------------------------------------------------------------------------

function offer(layout) {
  const lines = at("arrays");
  lines.querySelectorAll("button").forEach((button) => button.remove());
  for (const { name, size } of layout.arrays) {
    const on = name in layout.traces;
    const button = make("button", { type: "button", text: name, "aria-pressed": on, title: `${size} values` });
    button.addEventListener("click", () => {
      const chosen = { ...layout.traces };
      if (on) delete chosen[name];
      else chosen[name] = Array.from({ length: Math.min(size, LINES.length) }, (_, i) => i);
      view.traces = chosen;
      ask();
    });
    lines.append(button);
  }
  const choices = layout.arrays.filter(({ size }) => size > 1).map(({ name }) => make("option", { text: name, value: name }));
  at("heat-array").replaceChildren(...choices);
  at("heat-array").value = layout.heat ?? "";
}

function pause() {
  view.paused = !view.paused;
  at("pause").textContent = view.paused ? "Go on" : "Pause";
  at("pause").setAttribute("aria-pressed", view.paused);
  if (view.paused) history?.stop();
  if (health) tellHow();
  ask();
}

at("window").append(...WINDOWS.map((s) => make("option", { text: `${s} s`, value: s })));
at("window").value = view.window_s;
at("window").addEventListener("change", ({ target }) => {
  view.window_s = Number(target.value);
  ask();
});
at("heat-array").addEventListener("change", ({ target }) => {
  view.heat = target.value;
  ask();
});
at("pause").addEventListener("click", pause);
at("dimensions").addEventListener("click", ({ target }) => {
  trajectory.deep = !trajectory.deep;
  target.setAttribute("aria-pressed", trajectory.deep);
  redraw();
});
addEventListener("keydown", (event) => {
  if (event.key !== " " || event.target.closest("button, select, input, summary, a")) return;
  event.preventDefault();
  pause();
});
addEventListener("resize", redraw);

connect();
