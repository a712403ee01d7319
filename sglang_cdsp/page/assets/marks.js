// Marks at the foot of the timeline's rows: seats that got another role, requests that moved.

import { colour } from "./colours.js";
import { movesWords, roleWords } from "./roles.js";
import { say, set, svg } from "./words.js";

const FOOT = 15;
const MIDDLE = 7;
const TAG = 13;
const FINGER = 18;

export class Marks {
  constructor(timeline) {
    this.timeline = timeline;
    this.ways = svg("g", { class: "ways", "aria-hidden": "true", "clip-path": "url(#inside)" });
  }

  /** Draw a line from where each request left to where it arrived. */
  drawWays(marks, top) {
    const { timeline } = this;
    const ways = marks.flat().filter((mark) => mark.record && !mark.leaves);
    while (this.ways.childElementCount < ways.length) this.ways.append(svg("line"));
    while (this.ways.childElementCount > ways.length) this.ways.lastChild.remove();
    const y = (instance) => top + (instance + 1) * timeline.shape.row - FOOT + MIDDLE;
    ways.forEach(({ record, move }, i) => {
      const down = move.to > move.from ? 1 : -1;
      set(this.ways.children[i], {
        class: colour(record.n),
        x1: timeline.x(move.left_s).toFixed(1), y1: y(move.from) + 5 * down,
        x2: timeline.x(move.arrived_s).toFixed(1), y2: y(move.to) - 4 * down,
        "data-n": record.n,
        "data-dim": timeline.selected !== null && timeline.selected !== record.n,
      });
    });
  }

  /** Draw the marks of a row, and take those away that are gone. */
  draw(row, marks) {
    const gone = new Set(row.marks.keys());
    for (const mark of marks) {
      gone.delete(mark.key);
      let made = row.marks.get(mark.key);
      if (!made) {
        made = this.#make(row, mark);
        row.marks.set(mark.key, made);
      }
      this.#place(made, mark);
    }
    for (const key of gone) {
      const { group } = row.marks.get(key);
      if (group === document.activeElement) row.group.focus();
      group.remove();
      row.marks.delete(key);
    }
  }

  #make(row, mark) {
    const shape = mark.role ? roleShape() : mark.leaves ? leavingShape() : arrivingShape();
    const made = { title: svg("title"), finger: svg("rect", { class: "finger" }), shape };
    made.group = svg("g", { tabindex: -1, role: mark.role ? "img" : "button" },
      made.title, made.finger, ...shape);
    if (!mark.role) {
      made.group.addEventListener("click", () => this.timeline.open(mark.record.n, made.group));
    }
    // Letters lie below the requests' marks, which say more.
    if (mark.role) row.marked.prepend(made.group);
    else row.marked.append(made.group);
    return made;
  }

  #place(made, mark) {
    const { shape, selected } = this.timeline;
    made.at = mark.at;
    made.n = mark.record?.n ?? null;
    const foot = shape.row - FOOT;
    set(made.group, { transform: `translate(${this.timeline.x(mark.at).toFixed(1)} ${foot})` });
    set(made.finger, { x: mark.role ? 3 - FINGER : -FINGER / 2, y: -1, width: FINGER, height: FOOT });
    let label;
    if (mark.role) {
      label = roleWords(mark.change);
      set(made.group, { class: "mark role-change", "data-role": mark.role });
      const [line, , letter] = made.shape;
      set(line, { y1: 2 - foot, y2: TAG });
      say(letter, mark.role[0]);
    } else {
      label = movesWords(mark.record, mark.move, mark.leaves);
      set(made.group, {
        class: `mark ${mark.leaves ? "leaves" : "arrives"} ${colour(mark.record.n)}`,
        "data-n": mark.record.n,
        "data-dim": selected !== null && selected !== mark.record.n,
      });
      if (mark.leaves) set(made.shape[0], { d: mark.move.to > mark.move.from ? DOWN : UP });
    }
    set(made.group, { "aria-label": label });
    say(made.title, label);
  }
}

const DOWN = "M-5.5 2.5H5.5L0 12Z";
const UP = "M-5.5 11.5H5.5L0 2Z";

const leavingShape = () => [svg("path", { class: "shape" })];

const arrivingShape = () => [svg("circle", { class: "shape", cx: 0, cy: MIDDLE, r: 4 })];

/** The letter stands left of its moment: right of it are the requests that leave for that. */
const roleShape = () => [
  svg("line", { x1: 0, x2: 0 }),
  svg("rect", { class: "tag", x: -TAG, y: 0.5, width: TAG, height: TAG, rx: 3 }),
  svg("text", { x: -TAG / 2, y: TAG - 3, "text-anchor": "middle" }),
];

/** The marks of each row between two moments: roles first, then requests by their number. */
export function marksOf(pool, records, from, to) {
  const rows = pool.instances.map(() => []);
  const inside = (at) => at !== null && at >= from && at <= to;
  for (const change of pool.roleChanges) {
    if (!inside(change.at_s)) continue;
    const { at_s: at, role, seat } = change;
    rows[seat]?.push({ key: `role:${at}`, at, role, change });
  }
  for (const record of records) {
    for (const move of record.moves) {
      const key = `${record.n}:${move.arrived_s}`;
      if (inside(move.left_s)) {
        rows[move.from]?.push({ key: `${key}:left`, at: move.left_s, record, move, leaves: true });
      }
      if (inside(move.arrived_s)) {
        rows[move.to]?.push({ key, at: move.arrived_s, record, move, leaves: false });
      }
    }
  }
  return rows;
}
