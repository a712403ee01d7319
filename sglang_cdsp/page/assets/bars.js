// The bars of the timeline: one for each chunk and member, kept while they can be seen.

import { layerWords, say, seconds, set, svg, whole, cut } from "./words.js";

const TOP = 6;
const LETTER = 6.6;
const FEWEST_LETTERS = 6;
const ROOM_TWO_LINES = 26;

export class Bars {
  constructor(timeline) {
    this.timeline = timeline;
  }

  /** Draw a row's bars, `[bar, top, height]` each, and take those away that are gone. */
  draw(row, placed) {
    const gone = new Set(row.kept.keys());
    for (const [bar, top, height] of placed) {
      gone.delete(bar.key);
      let made = row.kept.get(bar.key);
      if (!made) {
        made = this.#make(row, bar);
        row.kept.set(bar.key, made);
      }
      this.#place(made, bar, top, height);
    }
    for (const key of gone) {
      const { group } = row.kept.get(key);
      if (group === document.activeElement) row.group.focus();
      group.remove();
      row.kept.delete(key);
    }
  }

  #make(row, bar) {
    const made = {
      box: svg("rect", { class: "box", rx: 3 }),
      fill: svg("rect", { class: "fill", rx: 3 }),
      // The same words twice, each cut to what is computed or left, in the colour that reads there.
      words: ["over", "beside"].map((kind) => words(kind)),
      title: svg("title"),
    };
    made.group = svg("g", { class: "bar", role: "button", tabindex: -1 },
      made.title, made.box, made.fill, ...made.words.map(({ frame }) => frame));
    made.group.addEventListener("click", () => this.timeline.open(bar.record.n, made.group));
    row.bars.append(made.group);
    return made;
  }

  #place(made, bar, top, height) {
    const { timeline } = this;
    const { shape, pool } = timeline;
    made.at = bar.start;
    made.n = bar.record.n;
    const x = timeline.x(bar.start);
    const width = Math.max(1.5, timeline.x(bar.end) - x - 1);
    const y = TOP + top * shape.bar;
    const tall = Math.max(3, height * shape.bar - (height < 1 ? 1 : 0));
    const share = bar.state === "done" ? 1 : bar.state === "running" ? bar.fraction ?? 0 : 0;
    const at = { x: x.toFixed(1), y: y.toFixed(1), height: tall.toFixed(1) };
    set(made.box, { ...at, width: width.toFixed(1) });
    set(made.fill, { ...at, width: (width * share).toFixed(1) });
    const selected = timeline.selected;
    const failed = bar.record.state === "failed" || bar.record.state === "aborted";
    const kind = bar.passes ? " passes" : "";
    set(made.group, {
      class: `bar ${bar.state} ${bar.colour}${kind}${failed ? " broken" : ""}`,
      "data-n": bar.record.n,
      "data-chunk": bar.index,
      "data-state": bar.state,
      "data-dim": selected !== null && selected !== bar.record.n,
    });
    const layer = pool.layer(bar.record.n, bar.index);
    this.#write(made, bar, { x, y, width, tall, share }, layer);
    const label = this.#label(bar, layer);
    set(made.group, { "aria-label": label });
    say(made.title, label);
  }

  #write(made, bar, { x, y, width, tall, share }, layer) {
    const { shape, pool } = this.timeline;
    const from = Math.max(x, shape.left) + 6;
    const letters = Math.floor((x + width - from - 6) / LETTER);
    const shown = letters >= Math.min(bar.record.rid.length, FEWEST_LETTERS) && tall >= 12;
    const size = `${whole(bar.chunk.tokens)}@${bar.chunk.instances.length}`;
    const two = tall >= ROOM_TWO_LINES && letters >= size.length;
    const running = bar.state === "running" && layer
      ? `${size} · ${layerWords(layer, pool.facts.layers)}` : size;
    const parts = [[x, width * share], [x + width * share, width * (1 - share)]];
    made.words.forEach(({ frame, name, sub }, i) => {
      const [start, wide] = parts[i];
      set(frame, { visibility: shown && wide > 0.5 ? null : "hidden" });
      if (!shown || wide <= 0.5) return;
      set(frame, { x: start.toFixed(1), y: y.toFixed(1), width: wide.toFixed(1), height: tall });
      const at = (from - start).toFixed(1);
      set(name, { x: at, y: two ? tall / 2 - 3 : tall / 2 + 4 });
      set(sub, { x: at, y: tall / 2 + 11, visibility: two ? null : "hidden" });
      say(name, cut(bar.record.rid, letters));
      say(sub, running.length <= letters ? running : size);
    });
  }

  #label(bar, layer) {
    const { chunk, record } = bar;
    const size = chunk.instances.length;
    const words = [`${record.rid}: chunk ${bar.index + 1} of ${record.chunks.length}`,
      `${whole(chunk.tokens)} tokens on ${size} instance${size > 1 ? "s" : ""}`];
    const planned = seconds(chunk.planned[1] - chunk.planned[0]);
    if (bar.state === "done") words.push(`took ${seconds(bar.end - bar.start)}, planned ${planned}`);
    else if (bar.state === "planned") words.push(`planned, ${planned}`);
    else if (layer) words.push(layerWords(layer, this.timeline.pool.facts.layers));
    else words.push("running");
    if (bar.passes) words.push("passes others");
    return words.join(", ");
  }

  /** A row takes the one place that the tab key stops at. */
  tabStop(row) {
    for (const other of this.timeline.rows) set(other.group, { tabindex: other === row ? 0 : -1 });
  }

  /** Arrows move among rows, bars and marks, Enter opens, Escape goes back to the row. */
  key(event) {
    const { rows } = this.timeline;
    const row = rows.find(({ group }) => group.contains(document.activeElement));
    if (!row) return;
    const bars = [...row.kept.values(), ...row.marks.values()].sort((a, b) => a.at - b.at);
    const focused = bars.findIndex(({ group }) => group === document.activeElement);
    const move = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    let to = null;
    if (move !== undefined) to = rows[rows.indexOf(row) + move]?.group;
    else if (event.key === "ArrowRight") to = bars[focused < 0 ? 0 : focused + 1]?.group;
    else if (event.key === "ArrowLeft") {
      to = focused < 0 ? bars[bars.length - 1]?.group : bars[focused - 1]?.group ?? row.group;
    } else if (event.key === "Home") to = bars[0]?.group;
    else if (event.key === "End") to = bars[bars.length - 1]?.group;
    else if (event.key === "Escape" && focused >= 0) {
      to = row.group;
      event.stopPropagation();
    } else if (event.key === "Enter" || event.key === " ") {
      const bar = focused < 0 ? bars.findLast(({ n }) => n !== null) : bars[focused];
      if (bar && bar.n !== null) this.timeline.open(bar.n, document.activeElement);
    } else return;
    event.preventDefault();
    to?.focus();
  }
}

function words(kind) {
  const name = svg("text", { class: "rid" });
  const sub = svg("text", { class: "sub" });
  return { name, sub, frame: svg("svg", { class: `words ${kind}` }, name, sub) };
}
