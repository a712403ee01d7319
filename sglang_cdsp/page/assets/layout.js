// Where bars lie: who shares a row's height with whom, who decodes when, who was absent when.

/**
 * Give bars of one row their share of its height: those that overlap one another, directly or by
 * others, share it; what passes lies, lower, on what it passes. Returns `[bar, top, height]` with
 * both in fractions of the row.
 */
export function stacked(bars) {
  const plain = clustered(bars.filter((bar) => !bar.passes));
  const passing = clustered(bars.filter((bar) => bar.passes));
  return [...plain, ...passing.map(([bar, top, height]) => [bar, 0.22 + 0.56 * top, 0.56 * height])];
}

function clustered(bars) {
  const placed = [];
  let cluster = [];
  let end = -Infinity;
  const close = () => {
    placed.push(...shared(cluster));
    cluster = [];
  };
  for (const bar of [...bars].sort((a, b) => a.start - b.start)) {
    // What ends where the next one starts may overlap it by the clocks' difference.
    if (bar.start >= end - 0.01) {
      close();
      end = -Infinity;
    }
    cluster.push(bar);
    end = Math.max(end, bar.end);
  }
  close();
  return placed;
}

function shared(cluster) {
  const ends = [];
  const lanes = cluster.map((bar) => {
    let lane = ends.findIndex((end) => end <= bar.start + 0.01);
    if (lane < 0) lane = ends.length;
    ends[lane] = bar.end;
    return lane;
  });
  return cluster.map((bar, i) => [bar, lanes[i] / ends.length, 1 / ends.length]);
}

/**
 * Where and when a request decodes: `{instance, start, end}`, oldest first, with the pauses of its
 * moves left out. What it did before it was computed anew is of a plan that is no more.
 */
export function decodeStretches(record, now) {
  if (!record.decodes || record.first_token_s === null) return [];
  let start = record.first_token_s;
  if (record.recalls && !record.one_instance) {
    const ran = record.chunks[record.chunks.length - 1]?.ran[1] ?? null;
    if (ran === null) return [];
    start = Math.max(start, ran);
  }
  const moves = record.moves.filter((move) => move.arrived_s >= record.bound_s);
  // Of many moves the first are not told: where it was before those that are is not known.
  const known = record.moved === record.moves.length || moves.length < record.moves.length;
  const found = [];
  let instance = moves[0]?.from ?? record.home;
  for (const [i, move] of moves.entries()) {
    if (i > 0 || known) found.push({ instance, start, end: move.left_s });
    [instance, start] = [move.to, move.arrived_s];
  }
  found.push({ instance, start, end: record.last_token_s ?? record.ended_s ?? now });
  return found.filter(({ start: from, end }) => end > from);
}

/** Steps `[second, how many]` of what decodes on an instance, oldest first. */
export function decodeSteps(stretches, instance) {
  const edges = [];
  for (const stretch of stretches) {
    if (stretch.instance === instance) edges.push([stretch.start, 1], [stretch.end, -1]);
  }
  edges.sort((a, b) => a[0] - b[0] || b[1] - a[1]);
  let level = 0;
  return edges.map(([at, change]) => [at, (level += change)]);
}

/** Periods `[start, end]` in which a seat took nothing; an end of null is still to come. */
export function absences(changes, seat, state) {
  const periods = [];
  let open = null;
  for (const change of changes) {
    if (change.seat !== seat) continue;
    const takesPart = change.state === "up" || change.state === "draining";
    if (!takesPart && open === null) open = change.at_s;
    if (takesPart && open !== null) {
      periods.push([open, change.at_s]);
      open = null;
    }
  }
  if (open !== null) periods.push([open, null]);
  else if (state !== "up" && state !== "draining" && periods.length === 0) {
    periods.push([-Infinity, null]);
  }
  return periods;
}

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300];

/** Whole seconds between two ticks, so that there are at most so many in a span. */
export const tickStep = (span, most) =>
  STEPS.find((step) => span / step <= most) ?? STEPS[STEPS.length - 1];
