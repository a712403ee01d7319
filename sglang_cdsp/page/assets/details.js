// One request: its plan, how it went, and why it was chosen.

import { colour } from "./colours.js";
import { chunkTimes, over, ttft } from "./pool.js";
import { pause } from "./roles.js";
import { el, layerWords, named, plan, ranges, seconds, set, whole } from "./words.js";

export class Details {
  /** `closed()` hears that the details are gone. */
  constructor(place, closed) {
    this.place = place;
    this.closed = closed;
    this.n = null;
    this.from = null;
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.n !== null && !event.defaultPrevented) this.close();
    });
  }

  /** Show a request; `from` gets the focus back. */
  open(n, from, pool) {
    this.n = n;
    this.from = from;
    this.last = null;
    this.draw(pool);
    this.place.hidden = false;
    this.place.focus({ preventScroll: true });
  }

  close() {
    this.n = null;
    this.place.hidden = true;
    this.place.replaceChildren();
    this.closed();
    if (this.from?.isConnected) this.from.focus();
  }

  draw(pool) {
    if (this.n === null) return;
    const record = pool.requests.get(this.n);
    if (!record) {
      this.close();
      return;
    }
    // What was drawn stays while nothing has changed, so that a selection in it does, too.
    const facts = JSON.stringify([record, pool.progress.get(this.n) ?? null]);
    if (facts === this.last) return;
    this.last = facts;
    const held = this.place.contains(document.activeElement) &&
      document.activeElement.classList.contains("close");
    const top = this.place.scrollTop;
    this.place.replaceChildren(...this.#parts(record, pool));
    this.place.scrollTop = top;
    if (held) this.place.querySelector(".close").focus();
  }

  #parts(record, pool) {
    const close = el("button", { type: "button", class: "tool close", "aria-label": "Close" }, "✕");
    close.addEventListener("click", () => this.close());
    set(this.place, { "data-n": record.n });
    return [
      el("div", { class: "details-head" },
        el("span", { class: `swatch ${colour(record.n)}` }),
        el("h2", { id: "details-title" }, record.rid),
        el("span", { class: "chip", "data-state": record.state }, record.state), close),
      record.error ? el("p", { class: "error" }, record.error) : null,
      facts(record),
      record.chunks.length ? el("h3", {}, "Plan") : null,
      record.chunks.length ? chunkTable(record, pool) : null,
      ...reasons(record),
      ...changes(record),
      ...moves(record),
    ].filter((part) => part !== null);
  }
}

function facts(record) {
  const { measured, planned } = ttft(record);
  const rows = [["Prompt", `${whole(record.tokens)} tokens`]];
  if (record.bound_s !== null) {
    rows.push(["Waited for its plan", seconds(record.bound_s - record.arrival_s)]);
  }
  const started = record.chunks[0]?.ran[0] ?? null;
  if (started !== null) rows.push(["First chunk after", seconds(started - record.arrival_s)]);
  if (planned !== null) {
    const time = measured === null ? `${seconds(planned)} planned`
      : `${seconds(measured)} (planned ${seconds(planned)})`;
    rows.push(["TTFT", time]);
  }
  if (over(record) && record.output_tokens) {
    rows.push(["Output", `${whole(record.output_tokens)} tokens`]);
  }
  if (record.home !== null) rows.push(["Home", `instance ${record.home}`]);
  if (record.reused) rows.push(["From the prefix cache", `${whole(record.reused)} tokens`]);
  if (record.policy) rows.push(["Policy", record.policy]);
  if (record.one_instance) rows.push(["Path", "SGLang's own batches"]);
  if (record.passes) rows.push(["Passes", "yes, between layers"]);
  if (record.recalls) rows.push(["Plans taken back", whole(record.recalls)]);
  return el("dl", { class: "facts" },
    ...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function table(heads, rows) {
  return el("div", { class: "table", tabindex: 0, role: "region", "aria-label": heads.join(", ") },
    el("table", {},
      el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, ...rows)));
}

function chunkTable(record, pool) {
  const times = new Map(chunkTimes(record, pool, pool.now()).map((found) => [found.index, found]));
  const rows = record.chunks.map((chunk, index) => {
    const found = times.get(index);
    const layer = pool.layer(record.n, index);
    const done = found?.state === "done" ? seconds(found.end - found.start)
      : layer ? layerWords(layer, pool.facts.layers) : found?.state === "running" ? "runs" : "–";
    return el("tr", {},
      el("td", { class: "number" }, whole(chunk.tokens)),
      el("td", {}, ranges(chunk.instances)),
      el("td", { class: "number" }, seconds(chunk.planned[1] - chunk.planned[0])),
      el("td", { class: "number" }, done));
  });
  return table(["Tokens", "Instances", "Planned", "Measured"], rows);
}

function reasons(record) {
  if (!record.why) return [];
  const { why } = record;
  const longest = Math.max(...why.options.map((option) => option.ttft_s), 1e-9);
  const rows = why.options.filter((option) => option.chunks.length).map((option, i) => {
    const chunks = option.chunks.map(([tokens, instances]) => ({ tokens, instances }));
    const bar = el("progress", { max: longest, value: option.ttft_s, "aria-hidden": "true" });
    return el("tr", { class: i === 0 ? "chosen" : null },
      el("td", {}, el("span", { class: "number" }, plan(chunks)),
        el("span", { class: "quiet" }, named(chunks[chunks.length - 1].instances))),
      el("td", { class: "number" }, seconds(option.ttft_s), bar),
      el("td", { class: "number" }, option.instance_seconds.toFixed(2)),
      el("td", {}, i === 0 ? "chosen" : option.words));
  });
  const impossible = why.options.filter((option) => !option.chunks.length && option.words);
  return [
    el("h3", {}, "Why this plan"),
    el("p", {}, why.words),
    el("p", { class: "quiet" },
      `When it was planned, ${queue(why.queue_s)}. A larger SP size had to cut TTFT by ` +
      `${Math.round(why.improvement_rate * 100)} %.`),
    table(["Plan", "TTFT", "Instance-s", ""], rows),
    ...impossible.map((option) => el("p", { class: "quiet" }, option.words)),
  ];
}

const MOST_NAMED = 8;

function queue(seconds_) {
  const free = seconds_.flatMap((value, i) => (value <= 0.005 ? [i] : []));
  const busy = seconds_.map((value, i) => [value, i]).filter(([value]) => value > 0.005);
  const words = free.length ? [`${named(free)} ${free.length > 1 ? "were" : "was"} free`] : [];
  for (const [value, i] of busy.slice(0, MOST_NAMED)) {
    words.push(`instance ${i} was busy for ${seconds(value)}`);
  }
  if (busy.length > MOST_NAMED) words.push(`${busy.length - MOST_NAMED} more were busy`);
  return words.join(", ");
}

function changes(record) {
  if (!record.replans.length) return [];
  return [
    el("h3", {}, "Planned anew"),
    el("ol", { class: "changes" }, ...record.replans.map((change) => el("li", {},
      el("span", { class: "number" }, `after ${seconds(change.at_s - record.arrival_s)}: `),
      `${change.before} became ${change.after}`,
      el("span", { class: "quiet" }, change.reason)))),
  ];
}

function moves(record) {
  if (!record.moves.length) return [];
  const rows = record.moves.map((move) => el("tr", {},
    el("td", { class: "number" }, seconds(move.left_s - record.arrival_s)),
    el("td", {}, `${move.from} → ${move.to}`),
    el("td", { class: "number" }, whole(move.tokens)),
    el("td", { class: "number" }, pause(move))));
  const shown = record.moves.length;
  return [
    el("h3", {}, "Moves"),
    table(["After", "Instances", "Tokens of KV", "Pause"], rows),
    record.moved > shown
      ? el("p", { class: "quiet" }, `The last ${shown} of ${whole(record.moved)}.`) : null,
  ];
}
