// What the page has of the time window: points, flagged bins, columns of the heat map. A new layout starts it over.

const SLACK_S = 1; // kept beyond the window
const HOLE = 2.5; // times the usual distance between points: a line is broken there

export class History {
  constructor(layout) {
    this.layout = layout;
    this.groupS = layout.bins_a_point * layout.bin_width_s;
    this.t = [];
    this.lines = {}; // name -> a list a column, null where there is no value
    for (const [name, columns] of Object.entries(layout.traces)) this.lines[name] = columns.map(() => []);
    this.marks = []; // {t, flags} of groups of bins with flags
    this.heat = []; // {t, values}
    this.newest = null; // {seq, t, age_s}
    this.cameAt = 0; // when it did, by performance.now()
    this.now = {}; // name -> the newest bin's values of the chosen columns
    this.trajectory = this.cursor = this.target = null;
    this.stoppedAt = null; // the end of the time window while the page is paused
  }

  /** The end of the time window: the newest bin, or, when nothing comes, as much later as that lasts. */
  get end() {
    if (!this.newest) return 0;
    if (this.stoppedAt !== null) return this.stoppedAt;
    const age = this.newest.age_s + (performance.now() - this.cameAt) / 1000;
    return this.newest.t + Math.max(0, age - Math.max(0.5, 3 * this.groupS));
  }

  /** Keeps everything as it is. */
  stop() {
    this.stoppedAt = this.end;
  }

  take(frame) {
    const { blocks } = frame;
    this.newest = frame.newest;
    this.cameAt = performance.now();
    for (const name of Object.keys(this.lines)) this.now[name] = blocks[`now.${name}`].values;
    for (const name of ["trajectory", "cursor", "target"]) if (blocks[name]) this[name] = blocks[name];
    if (blocks.t) this.#add(blocks);
    this.#forget();
  }

  #add(blocks) {
    const t = blocks.t.values;
    const perGroup = this.layout.points_a_group;
    const usual = this.groupS / perGroup;
    for (let i = 0; i < t.length; i++) {
      const last = this.t.at(-1);
      if (last !== undefined && t[i] - last > HOLE * usual + usual) this.#push((last + t[i]) / 2, null, 0);
      this.#push(t[i], blocks, i);
    }
    const flags = blocks.flags.values;
    const heat = blocks.heat;
    for (let i = 0; i < flags.length; i++) {
      if (flags[i]) this.marks.push({ t: t[i * perGroup], flags: flags[i] });
      if (heat) {
        const n = heat.shape[1];
        this.heat.push({ t: t[i * perGroup], values: heat.values.subarray(i * n, (i + 1) * n) });
      }
    }
  }

  #push(t, blocks, i) {
    this.t.push(t);
    for (const [name, columns] of Object.entries(this.lines)) {
      const values = blocks?.[`traces.${name}`].values;
      columns.forEach((column, c) => {
        const value = values ? values[i * columns.length + c] : NaN;
        column.push(Number.isNaN(value) ? null : value);
      });
    }
  }

  #forget() {
    const begin = this.end - this.layout.window_s - SLACK_S;
    const old = this.t.findIndex((t) => t >= begin);
    if (old > 64) {
      this.t.splice(0, old);
      for (const columns of Object.values(this.lines)) for (const column of columns) column.splice(0, old);
    }
    while (this.marks.length && this.marks[0].t < begin) this.marks.shift();
    while (this.heat.length && this.heat[0].t < begin) this.heat.shift();
  }
}
