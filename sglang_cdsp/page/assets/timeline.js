// The timeline: a row an instance, chunks coloured by request, what decodes below.

import { colour } from "./colours.js";
import { Bars } from "./bars.js";
import { absences, decodeSteps, decodeStretches, stacked, tickStep } from "./layout.js";
import { Marks, marksOf } from "./marks.js";
import { chunkTimes, over } from "./pool.js";
import { roleOf } from "./roles.js";
import { cut, say, set, svg } from "./words.js";

const AXIS = 26;
const AHEAD = 0.2;
const FRAME_MS = 80;
const STILL_MS = 500;
const STATE_WORDS = { up: "", draining: "draining" };

export class Timeline {
  /** Draw into `place`; `open(n, from)` shows a request's details. */
  constructor(place, pool, open) {
    this.pool = pool;
    this.open = open;
    this.span = 30;
    this.pausedAt = null;
    this.selected = null;
    this.rows = [];
    this.place = place;
    this.svg = svg("svg", { class: "chart", role: "group", "aria-label": "Timeline by instance" });
    this.svg.append(this.#definitions());
    this.axis = svg("g", { class: "axis", "aria-hidden": "true" });
    this.body = svg("g", { class: "rows" });
    this.now = svg("g", { class: "now", "aria-hidden": "true" },
      svg("line"), svg("text", { "text-anchor": "middle" }));
    say(this.now.lastChild, "now");
    this.bars = new Bars(this);
    this.marks = new Marks(this);
    this.svg.append(this.axis, this.marks.ways, this.body, this.now);
    place.append(this.svg);
    this.svg.addEventListener("keydown", (event) => this.bars.key(event));
    new ResizeObserver(() => this.draw()).observe(place);
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.drawn = 0;
    requestAnimationFrame((at) => this.#frame(at));
  }

  #definitions() {
    const stripes = svg("pattern", {
      id: "stripes", width: 8, height: 8, patternUnits: "userSpaceOnUse",
      patternTransform: "rotate(45)",
    }, svg("line", { x1: 0, y1: 0, x2: 0, y2: 8, class: "stripe" }));
    this.clip = svg("rect");
    return svg("defs", {}, stripes, svg("clipPath", { id: "inside" }, this.clip));
  }

  #frame(at) {
    const every = this.pool.busy && !this.still.matches ? FRAME_MS : STILL_MS;
    if (!document.hidden && at - this.drawn >= every) {
      this.drawn = at;
      this.draw();
    }
    requestAnimationFrame((next) => this.#frame(next));
  }

  /** Stand still, or go on. */
  pause(still) {
    this.pausedAt = still ? this.pool.now() : null;
    this.draw();
  }

  select(n) {
    this.selected = n;
    this.draw();
  }

  draw() {
    const width = this.place.clientWidth;
    if (!this.pool.facts || width === 0) return;
    const narrow = width < 560;
    const decodes = this.pool.facts.form === "one_server";
    const row = (narrow ? 44 : 50) + (decodes ? 12 : 0);
    const shape = this.shape = {
      narrow, decodes, row, width,
      left: narrow ? 46 : 92,
      bar: row - (decodes ? 22 : 12),
      now: this.pausedAt ?? this.pool.now(),
    };
    shape.inside = width - shape.left - 8;
    shape.start = shape.now - this.span * (1 - AHEAD);
    shape.height = AXIS + this.pool.instances.length * row;
    set(this.svg, { width, height: shape.height + 2, viewBox: `0 0 ${width} ${shape.height + 2}` });
    set(this.clip, { x: shape.left, y: 0, width: shape.inside, height: shape.height });
    this.#drawAxis();
    this.#drawRows();
  }

  /** Where a moment lies. */
  x(at) {
    const { left, inside, start } = this.shape;
    return left + ((at - start) / this.span) * inside;
  }

  #drawAxis() {
    const { narrow, now, start, height, left, width } = this.shape;
    const step = tickStep(this.span, narrow ? 5 : 10);
    const ticks = [];
    for (let at = -Math.floor((now - start) / step) * step; at <= this.span * AHEAD; at += step) {
      if (at !== 0) ticks.push(at);
    }
    while (this.axis.childElementCount < ticks.length) {
      this.axis.append(svg("g", {}, svg("line"), svg("text", { "text-anchor": "middle" })));
    }
    while (this.axis.childElementCount > ticks.length) this.axis.lastChild.remove();
    ticks.forEach((at, i) => {
      const [line, text] = this.axis.children[i].children;
      const x = this.x(now + at).toFixed(1);
      set(line, { x1: x, x2: x, y1: AXIS - 6, y2: height });
      const fits = x > left + 14 && x < width - 20;
      set(text, { x, y: 14, visibility: fits ? null : "hidden" });
      say(text, tick(at));
    });
    const x = this.x(now).toFixed(1);
    set(this.now.firstChild, { x1: x, x2: x, y1: AXIS - 6, y2: height });
    set(this.now.lastChild, { x, y: 14 });
    say(this.now.lastChild, this.pausedAt === null ? "now" : "paused");
  }

  #drawRows() {
    const { instances } = this.pool;
    while (this.rows.length < instances.length) this.#addRow(this.rows.length);
    while (this.rows.length > instances.length) this.rows.pop().group.remove();
    const seen = this.#bars();
    const { decodes, now, start } = this.shape;
    const records = decodes ? [...this.pool.requests.values()] : [];
    const stretches = records.flatMap((record) => decodeStretches(record, now)
      .map((stretch) => ({ ...stretch, record })));
    const marks = marksOf(this.pool, records, start, now);
    this.marks.drawWays(marks, AXIS);
    for (const [i, row] of this.rows.entries()) {
      const y = AXIS + i * this.shape.row;
      set(row.group, { transform: `translate(0 ${y})` });
      this.#drawLabel(row, i, instances[i], seen[i]);
      this.#drawAbsences(row, i, instances[i]);
      this.bars.draw(row, stacked(seen[i]));
      this.#drawDecode(row, i, stretches);
      this.#drawSelected(row, i, stretches);
      this.marks.draw(row, marks[i]);
    }
  }

  #addRow(i) {
    const row = {
      frame: svg("rect", { class: "frame", rx: 4 }),
      line: svg("line", { class: "border" }),
      name: svg("text", { class: "name" }),
      role: svg("text", { class: "role" }),
      state: svg("text", { class: "state" }),
      absent: svg("g", { "clip-path": "url(#inside)" }),
      bars: svg("g", { "clip-path": "url(#inside)" }),
      strip: svg("path", { class: "strip", "clip-path": "url(#inside)" }),
      selected: svg("path", { class: "selected", "clip-path": "url(#inside)" }),
      marked: svg("g", { "clip-path": "url(#inside)" }),
      count: svg("text", { class: "count" }),
      kept: new Map(),
      marks: new Map(),
    };
    row.group = svg("g", { class: "row", role: "group", tabindex: i === 0 ? 0 : -1, "data-row": i },
      row.frame, row.line, row.absent, row.strip, row.selected, row.bars, row.marked,
      row.name, row.role, row.state, row.count);
    row.group.addEventListener("focus", () => this.bars.tabStop(row));
    this.body.append(row.group);
    this.rows.push(row);
  }

  /** What there is to draw on each row. */
  #bars() {
    const { now, start } = this.shape;
    const rows = this.pool.instances.map(() => []);
    const records = [...this.pool.requests.values()]
      .filter((record) => !over(record) || record.ended_s > start)
      .sort((a, b) => a.n - b.n);
    const free = this.#freeFrom(records, now);
    for (const record of records) {
      for (const found of chunkTimes(record, this.pool, now, free)) {
        if (found.state === "planned" && !record.passes && !record.one_instance) {
          for (const i of found.chunk.instances) free[i] = found.end;
        }
        if (found.end < start || found.start > start + this.span) continue;
        for (const [member, instance] of found.chunk.instances.entries()) {
          rows[instance]?.push({
            ...found, record, member, passes: record.passes, colour: colour(record.n),
            key: `${record.n}:${found.index}`,
            fraction: found.state === "running"
              ? this.pool.fraction(record.n, found.index, member) : null,
          });
        }
      }
    }
    return rows;
  }

  /** When each instance should have ended the chunks that it runs. */
  #freeFrom(records, now) {
    const free = this.pool.instances.map(() => now);
    for (const record of records) {
      if (over(record) || record.one_instance) continue;
      for (const { state, end, chunk } of chunkTimes(record, this.pool, now)) {
        if (state !== "running") continue;
        for (const i of chunk.instances) free[i] = Math.max(free[i] ?? now, end);
      }
    }
    return free;
  }

  #drawLabel(row, i, instance, bars) {
    const { narrow, row: height, bar, width, decodes } = this.shape;
    set(row.frame, { x: 1, y: 1, width: width - 2, height: height - 2 });
    set(row.line, { x1: 0, x2: width, y1: height, y2: height });
    const role = roleOf(instance);
    const x = narrow ? 8 : 12;
    set(row.name, { x, y: (role ? 3 : 9) + bar / 2 });
    say(row.name, narrow ? `${i}` : `instance ${i}`);
    set(row.role, { x, y: bar / 2 + 17, "data-role": role || null });
    say(row.role, role);
    const state = STATE_WORDS[instance.state] ?? instance.state;
    const below = role ? height - 6 : bar / 2 + 22;
    set(row.state, { x, y: below, "data-state": instance.state });
    say(row.state, narrow ? cut(state, 5) : state);
    const decoding = decodes ? instance.decoding : 0;
    set(row.count, { x, y: height - 6, visibility: state ? "hidden" : null });
    say(row.count, decoding ? (narrow ? `${decoding} dec` : `${decoding} decoding`) : "");
    const running = bars.filter((found) => found.state === "running").map((found) => {
      const layer = this.pool.layer(found.record.n, found.index);
      return `${found.record.rid}${layer ? `, layer ${layer} of ${this.pool.facts.layers}` : ""}`;
    });
    const words = [`Instance ${i}`, instance.state];
    if (role) words.push(`${role} only`);
    if (decodes) words.push(`${decoding} decoding`);
    words.push(running.length ? `runs ${running.join("; ")}` : "runs no chunk");
    set(row.group, { "aria-label": words.join(", ") });
  }

  #drawAbsences(row, i, instance) {
    const periods = absences(this.pool.seatChanges, i, instance.state);
    const { start, now, bar } = this.shape;
    const rects = periods
      .map(([from, to]) => [Math.max(from, start), to ?? now])
      .filter(([from, to]) => to > from);
    while (row.absent.childElementCount < rects.length) {
      row.absent.append(svg("rect", { class: "absent", fill: "url(#stripes)" }));
    }
    while (row.absent.childElementCount > rects.length) row.absent.lastChild.remove();
    rects.forEach(([from, to], k) => {
      const x = this.x(from);
      set(row.absent.children[k], { x, y: 6, width: this.x(to) - x, height: bar });
    });
  }

  #drawDecode(row, i, stretches) {
    const { now, start, row: height } = this.shape;
    const steps = decodeSteps(stretches, i);
    const base = height - 4;
    const scale = 9 / Math.max(3, ...steps.map(([, level]) => level));
    let level = 0;
    let path = "";
    for (const [at, next] of [...steps, [now, 0]]) {
      if (at > now) break;
      if (at > start) {
        const y = (base - level * scale).toFixed(1);
        path += path ? `H${this.x(at).toFixed(1)}` : `M${this.x(start)} ${base}V${y}H${this.x(at).toFixed(1)}`;
        path += `V${(base - next * scale).toFixed(1)}`;
      }
      level = next;
    }
    set(row.strip, { d: path ? `${path}V${base}Z` : null });
  }

  /** Where the request decodes whose details are open, in its colour. */
  #drawSelected(row, i, stretches) {
    const { start: left, row: height } = this.shape;
    const mine = stretches.filter(({ record, instance, end }) =>
      record.n === this.selected && instance === i && end > left);
    const path = mine.map(({ start, end }) =>
      `M${this.x(Math.max(start, left)).toFixed(1)} ${height - 7}H${this.x(end).toFixed(1)}`);
    set(row.selected, {
      class: `selected ${mine.length ? colour(this.selected) : ""}`.trim(),
      d: path.join("") || null,
    });
  }
}

/** "−30 s", "+10 s", "−5 min" */
function tick(at) {
  const sign = at < 0 ? "−" : "+";
  const size = Math.abs(at);
  return size >= 60 && size % 60 === 0 ? `${sign}${size / 60} min` : `${sign}${size} s`;
}
