// Curves of the last ten minutes, drawn by uPlot.

import { value } from "./colours.js";
import { el, rate, say, whole } from "./words.js";

const { uPlot } = globalThis;
const SPAN_S = 600;
const LEAST_SPAN_S = 120;
const SMOOTH_S = 5;
const HEIGHT = 128;

const CURVES = [
  {
    title: "Prompt tokens computed a second",
    format: whole,
    series: [["tokens/s", "--curve-1", (pool, at) => slope(at, pool.column("tokens"))]],
  },
  {
    title: "Requests",
    format: whole,
    series: [
      ["waiting", "--curve-2", (pool) => pool.column("waiting")],
      ["prefill", "--curve-1", (pool) => pool.column("running")],
      ["decoding", "--curve-3", (pool) => pool.column("decoding")],
    ],
  },
  {
    title: "Requests a second",
    format: rate,
    series: [
      ["arriving", "--curve-2", (pool, at) => slope(at, arrivals(pool))],
      ["ending", "--curve-1", (pool, at) => slope(at, pool.column("ends"))],
    ],
  },
];

/** Requests that have arrived: those that have ended, and those that have not. */
function arrivals(pool) {
  const columns = ["ends", "waiting", "running", "decoding"].map((name) => pool.column(name));
  return columns[0].map((_, i) => columns.reduce((sum, column) => sum + column[i], 0));
}

/** What a counter gains a second, over the last few. */
function slope(at, counts) {
  let first = 0;
  return at.map((second, i) => {
    while (at[first] < second - SMOOTH_S) first += 1;
    const span = second - at[first];
    return span > 0 ? Math.max(0, counts[i] - counts[first]) / span : null;
  });
}

export class Curves {
  constructor(place) {
    this.place = place;
    this.made = CURVES.map((curve) => this.#figure(curve));
    this.plots = [];
    new ResizeObserver(() => this.#resize()).observe(place);
  }

  #figure({ title, series }) {
    const values = series.map(() => el("b", { class: "number" }));
    const keys = series.map(([name, colour], i) =>
      el("span", { class: `key ${colour.slice(2)}` }, name, " ", values[i]));
    const plot = el("div", { class: "plot" });
    const caption = el("figcaption", {}, title);
    caption.append(el("span", { class: "keys" }, ...keys));
    this.place.append(el("figure", {}, caption, plot));
    return { plot, values };
  }

  /** Draw anew in the colours of the theme in force. */
  recolour() {
    for (const plot of this.plots) plot.destroy();
    this.plots = [];
    this.at = undefined;
  }

  draw(pool) {
    const at = pool.column("at_s");
    if (at.length < 2 || this.place.clientWidth === 0) return;
    if (at[at.length - 1] === this.at) return;
    this.at = at[at.length - 1];
    const unix = at.map((second) => second + pool.unix);
    CURVES.forEach((curve, i) => {
      const data = [unix, ...curve.series.map(([, , of]) => of(pool, at))];
      if (!this.plots[i]) this.plots[i] = this.#plot(curve, data, this.made[i].plot);
      else this.plots[i].setData(data, false);
      const last = unix[unix.length - 1];
      const first = Math.max(last - SPAN_S, Math.min(unix[0], last - LEAST_SPAN_S));
      this.plots[i].setScale("x", { min: first, max: last });
      this.made[i].values.forEach((place, k) => {
        const column = data[k + 1];
        say(place, curve.format(column[column.length - 1] ?? 0));
      });
    });
  }

  #plot(curve, data, place) {
    const axis = {
      stroke: value("--quiet"), font: "11px system-ui, sans-serif",
      grid: { stroke: value("--line"), width: 1 }, ticks: { show: false },
    };
    return new uPlot({
      width: Math.max(120, place.clientWidth),
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: true, auto: false }, y: { range: (_, low, high) => [0, nice(high)] } },
      axes: [
        { ...axis, space: 70, size: 24, values: (_, ticks) => ticks.map(clock) },
        { ...axis, space: 34, size: 46, values: (_, ticks) => ticks.map(short) },
      ],
      series: [{}, ...curve.series.map(([name, colour], i) => ({
        label: name, stroke: value(colour), width: 1.75, points: { show: false },
        fill: i === 0 && curve.series.length === 1 ? value("--curve-fill") : undefined,
      }))],
    }, data, place);
  }

  #resize() {
    this.plots.forEach((plot, i) => {
      const width = Math.max(120, this.made[i].plot.clientWidth);
      if (width !== plot.width) plot.setSize({ width, height: HEIGHT });
    });
  }
}

/** The top of an axis, from 1 on. */
function nice(high) {
  if (!(high > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(high));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= high * 1.05) ?? 20;
  return step * power;
}

const clock = (second) =>
  new Date(second * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });

const short = (number) => {
  if (number >= 10000) return `${number / 1000}k`;
  return number >= 10 || Number.isInteger(number) ? whole(number) : `${+number.toFixed(2)}`;
};
