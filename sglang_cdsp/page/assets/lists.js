// Lists and tiles: what waits, what the requests do, and the numbers of the moment.

import { colour } from "./colours.js";
import { over, ttft } from "./pool.js";
import { el, plan, rate, say, seconds, set, whole } from "./words.js";

const MOST_SHOWN = 40;
const RATE_S = 5;
const RECENT_S = 300;

/** Keep `place`'s children as `items` say: made once by key, then only filled, never lost focus. */
function keep(place, kept, items, make, fill) {
  const keys = new Set(items.map((item) => item.n));
  for (const [n, made] of kept) {
    if (keys.has(n)) continue;
    made.root.remove();
    kept.delete(n);
  }
  const focused = place.contains(document.activeElement) ? document.activeElement : null;
  items.forEach((item, i) => {
    let made = kept.get(item.n);
    if (!made) kept.set(item.n, (made = make(item)));
    if (place.children[i] !== made.root) place.insertBefore(made.root, place.children[i] ?? null);
    fill(made, item);
  });
  if (focused && focused !== document.activeElement && place.contains(focused)) {
    focused.focus({ preventScroll: true });
  }
}

export class Waiting {
  constructor(place, sum) {
    this.place = place;
    this.sum = sum;
    this.kept = new Map();
    this.rest = el("li", { class: "empty" });
  }

  draw(pool) {
    const { requests, tokens, first } = pool.waiting;
    const now = pool.now();
    say(this.sum, requests ? `${whole(requests)} · ${whole(tokens)} tokens` : "");
    this.rest.remove();
    keep(this.place, this.kept, first, () => {
      const made = {
        rid: el("span", { class: "rid" }),
        tokens: el("span", { class: "number" }),
        age: el("span", { class: "number age" }),
        state: el("span", { class: "quiet" }),
      };
      made.root = el("li", {}, made.rid, made.tokens, made.age, made.state);
      return made;
    }, (made, request) => {
      say(made.rid, request.rid);
      set(made.rid, { title: request.rid });
      say(made.tokens, `${whole(request.tokens)} tokens`);
      say(made.age, seconds(Math.max(0, now - request.arrival_s)));
      say(made.state, request.state);
    });
    const more = requests - first.length;
    say(this.rest, requests ? `and ${whole(more)} more` : "Nothing waits.");
    if (!requests || more > 0) this.place.append(this.rest);
  }
}

const ORDER = ["computing", "batched", "queued", "decoding", "ending"];

export class Requests {
  /** `open(n, from)` shows a request's details. */
  constructor(place, sum, open) {
    this.place = place;
    this.sum = sum;
    this.open = open;
    this.kept = new Map();
    this.none = el("li", { class: "empty" }, "No request has a plan yet.");
  }

  draw(pool, selected) {
    const all = pool.newest();
    const live = all.filter((record) => !over(record))
      .sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state) || a.n - b.n);
    const ended = all.filter(over).sort((a, b) => b.ended_s - a.ended_s);
    say(this.sum, `${whole(live.length)} in hand`);
    const shown = [...live, ...ended].slice(0, MOST_SHOWN);
    this.none.remove();
    keep(this.place, this.kept, shown, (record) => this.#make(record), (made, record) => {
      set(made.button, {
        class: `request ${colour(record.n)}`,
        "aria-pressed": String(selected === record.n),
        "data-n": record.n,
        "data-state": record.state,
      });
      say(made.rid, record.rid);
      set(made.rid, { title: record.rid });
      say(made.state, record.state);
      set(made.state, { "data-state": record.state });
      say(made.plan, record.chunks.length ? plan(record.chunks) : `${whole(record.tokens)} tokens`);
      say(made.time, time(record));
    });
    if (shown.length === 0) this.place.append(this.none);
  }

  #make(record) {
    const made = {
      rid: el("span", { class: "rid" }),
      state: el("span", { class: "chip" }),
      plan: el("span", { class: "plan number" }),
      time: el("span", { class: "time number" }),
    };
    made.button = el("button", { type: "button" }, el("span", { class: "swatch" }),
      made.rid, made.state, made.plan, made.time);
    made.button.addEventListener("click", () => this.open(record.n, made.button));
    made.root = el("li", {}, made.button);
    return made;
  }
}

function time(record) {
  const { measured, planned } = ttft(record);
  if (measured !== null) return `TTFT ${seconds(measured)}`;
  if (over(record) || planned === null) return "";
  return `TTFT ${seconds(planned)} planned`;
}

export class Tiles {
  constructor(place) {
    this.tiles = ["Waiting", "Computing", "Decoding", "Prefill", "TTFT"].map((name) => {
      const tile = {
        name: el("span", { class: "tile-name" }, name),
        value: el("span", { class: "tile-value" }, "–"),
        note: el("span", { class: "tile-note" }),
      };
      place.append(el("div", { class: "tile" }, tile.name, tile.value, tile.note));
      return tile;
    });
  }

  draw(pool) {
    const records = [...pool.requests.values()];
    const live = records.filter((record) => !over(record));
    const decoding = live.filter((record) => record.state === "decoding");
    const computing = live.filter(({ state }) => state === "computing" || state === "batched");
    const queued = live.filter(({ state }) => state === "queued").length;
    const outside = pool.facts.form !== "one_server";
    const rows = [
      [whole(pool.waiting.requests), `${whole(pool.waiting.tokens)} tokens`],
      [whole(computing.length), queued ? `${whole(queued)} queued` : "none queued"],
      outside
        ? [whole(pool.decodeRanks), `decode rank${pool.decodeRanks === 1 ? "" : "s"} reached`]
        : [whole(decoding.length), `on ${whole(new Set(decoding.map((r) => r.home)).size)} instances`],
      [whole(Math.round(tokenRate(pool))), "prompt tokens a second"],
      recentTtft(records, pool.now()),
    ];
    say(this.tiles[2].name, outside ? "Decode" : "Decoding");
    rows.forEach(([value, note], i) => {
      say(this.tiles[i].value, value);
      say(this.tiles[i].note, note);
    });
  }
}

/** Prompt tokens computed a second, over the last few. */
function tokenRate(pool) {
  const at = pool.column("at_s");
  const tokens = pool.column("tokens");
  const last = at.length - 1;
  if (last < 1) return 0;
  const first = Math.max(0, at.findIndex((second) => second >= at[last] - RATE_S));
  const span = at[last] - at[first];
  return span > 0 ? Math.max(0, tokens[last] - tokens[first]) / span : 0;
}

function recentTtft(records, now) {
  const found = records.map(ttft).filter((_, i) => records[i].first_token_s > now - RECENT_S)
    .filter(({ measured, planned }) => measured !== null && planned !== null);
  if (found.length === 0) return ["–", "median of 5 min"];
  const middle = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
  const measured = middle(found.map((one) => one.measured));
  const planned = middle(found.map((one) => one.planned));
  return [seconds(measured), `median; planned ${seconds(planned)}`];
}

/** The line under the title: what plans, with what. */
export function policyLine(pool) {
  const { planner, instances, facts } = pool;
  const up = instances.filter(({ state }) => state === "up").length;
  const ranks = facts.tp_size > 1 ? ` of ${facts.tp_size} ranks` : "";
  const there = up === instances.length ? `${up}` : `${up} of ${instances.length}`;
  return [
    `${there} instance${instances.length === 1 ? "" : "s"}${ranks}`,
    `policy ${planner.policy}`,
    `SP sizes ${planner.sp_sizes.join(", ")}`,
    `improvement rate ${rate(planner.improvement_rate)}`,
    `${rate(planner.arrival_rate)} requests/s`,
  ].join("  ·  ");
}
