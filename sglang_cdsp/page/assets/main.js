// The page at /cdsp: asks what is new, and draws it.

import { themes } from "./colours.js";
import { Curves } from "./curves.js";
import { Details } from "./details.js";
import { Feed } from "./feed.js";
import { Requests, Tiles, Waiting, policyLine } from "./lists.js";
import { Pool } from "./pool.js";
import { hasMoves, hasRoles } from "./roles.js";
import { Timeline } from "./timeline.js";
import { el, say, set } from "./words.js";

const SPANS = [[10, "10 s"], [30, "30 s"], [120, "2 min"]];
const WIDE_SPAN = 30;
const NARROW_SPAN = 10;
const NARROW = 560;
const byId = (id) => document.getElementById(id);

const pool = new Pool();
const details = new Details(byId("details"), () => select(null));
const open = (n, from) => {
  select(n);
  details.open(n, from, pool);
};
const timeline = new Timeline(byId("timeline"), pool, open);
const waiting = new Waiting(byId("waiting"), byId("waiting-sum"));
const requests = new Requests(byId("requests"), byId("requests-sum"), open);
const tiles = new Tiles(byId("tiles"));
const curves = new Curves(byId("curves"));

function select(n) {
  timeline.select(n);
  if (pool.facts) requests.draw(pool, n);
}

function draw() {
  if (!pool.facts) return;
  say(byId("model"), pool.facts.model);
  document.title = `${pool.facts.model} · sglang-cdsp`;
  say(byId("policy"), policyLine(pool));
  byId("legend-decode").hidden = pool.facts.form !== "one_server";
  byId("legend-roles").hidden = !hasRoles(pool);
  byId("legend-moves").hidden = !hasMoves(pool);
  byId("alarm").hidden = !pool.planner.policy_error;
  say(byId("alarm"), pool.planner.policy_error);
  tiles.draw(pool);
  waiting.draw(pool);
  requests.draw(pool, details.n);
  curves.draw(pool);
  details.draw(pool);
}

const feed = new Feed((answer, sentMs, heardMs) => {
  pool.apply(answer, sentMs, heardMs);
  if (!answer.more) draw();
  return pool.busy;
}, (state, words) => {
  set(byId("link"), { "data-state": state });
  say(byId("link"), words);
  byId("key-button").hidden = state !== "key";
  if (state === "key") askForKey(words);
});

// -- the key ------------------------------------------------------------------------------------

const dialog = byId("key-dialog");

function askForKey(words) {
  const refused = words === "the key was refused";
  say(byId("key-title"), refused ? "That key was refused" : "API key");
  byId("key").value = "";
  if (!dialog.open) dialog.showModal();
  byId("key").focus();
}

byId("key-button").addEventListener("click", () => askForKey(""));
byId("key-cancel").addEventListener("click", () => dialog.close());
byId("key-form").addEventListener("submit", () => {
  const key = byId("key").value.trim();
  byId("key").value = "";
  if (key) feed.use(key);
});

// -- switches -----------------------------------------------------------------------------------

for (const [span, words] of SPANS) {
  const button = el("button", { type: "button" }, words);
  button.addEventListener("click", () => choose(span));
  set(button, { "data-span": span });
  byId("spans").append(button);
}

function choose(span) {
  timeline.span = span;
  for (const button of byId("spans").children) {
    set(button, { "aria-pressed": String(Number(button.dataset.span) === span) });
  }
  timeline.draw();
}

byId("pause").addEventListener("click", () => {
  const paused = timeline.pausedAt === null;
  timeline.pause(paused);
  set(byId("pause"), { "aria-pressed": String(paused) });
  say(byId("pause"), paused ? "Go on" : "Pause");
});

choose(innerWidth < NARROW ? NARROW_SPAN : WIDE_SPAN);
themes(byId("theme"), () => {
  curves.recolour();
  draw();
});
feed.start();
