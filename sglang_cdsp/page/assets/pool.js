// The pool as the answers of the server have told it.

const KEEP_S = 660;
const MOST_ENDED = 500;
const STEADY = 0.2;
const JUMP_S = 0.5;

export class Pool {
  constructor() {
    this.epoch = null;
    this.clear();
  }

  clear() {
    this.requests = new Map();
    this.progress = new Map();
    this.waiting = { requests: 0, tokens: 0, first: [] };
    this.samples = [];
    this.seatChanges = [];
    this.roleChanges = [];
    this.instances = [];
    this.planner = null;
    this.facts = null;
    this.offset = null;
    this.unix = 0;
    this.decodeRanks = 0;
  }

  /** Take an answer in that was asked for and heard at these times of this page's clock, ms. */
  apply(answer, sentMs, heardMs) {
    if (answer.epoch !== this.epoch) {
      this.clear();
      this.epoch = answer.epoch;
    }
    this.#setClock(answer, (sentMs + heardMs) / 2);
    for (const record of answer.requests) this.requests.set(record.n, record);
    this.progress = new Map(answer.progress.map((found) => [found.n, found]));
    for (const name of ["waiting", "instances", "planner", "facts"]) this[name] = answer[name];
    this.decodeRanks = answer.decode_ranks;
    this.seatChanges.push(...answer.seat_changes);
    this.roleChanges.push(...answer.role_changes);
    this.samples.push(...answer.samples);
    if (!answer.more) this.#forget(answer.live);
  }

  #setClock(answer, middleMs) {
    const offset = answer.now_s - middleMs / 1000;
    const off = offset - (this.offset ?? offset);
    if (this.offset === null || Math.abs(off) > JUMP_S) this.offset = offset;
    else this.offset += STEADY * off;
    this.unix = answer.now_unix_s - answer.now_s;
  }

  /** The server's monotonic clock, seconds. */
  now() {
    return performance.now() / 1000 + (this.offset ?? 0);
  }

  #forget(live) {
    const now = this.now();
    const known = live && new Set(live);
    let ended = 0;
    for (const [n, record] of [...this.requests].reverse()) {
      if (record.ended_s === null) {
        // Its end was among so many others that it is not kept any more.
        if (known && !known.has(n)) this.requests.delete(n);
      } else if (++ended > MOST_ENDED || record.ended_s < now - KEEP_S) {
        this.requests.delete(n);
      }
    }
    this.samples = this.samples.filter((sample) => sample[0] > now - KEEP_S);
    this.seatChanges = this.seatChanges.slice(-100);
    this.roleChanges = this.roleChanges.filter(({ at_s }) => at_s > now - KEEP_S).slice(-200);
  }

  /** Requests with a plan, newest first. */
  newest() {
    return [...this.requests.values()].sort((a, b) => b.n - a.n);
  }

  /** Whether a chunk runs or a request waits. */
  get busy() {
    return this.progress.size > 0 || this.waiting.requests > 0 ||
      [...this.requests.values()].some((record) => record.ended_s === null);
  }

  /** A column of the samples by its name. */
  column(name) {
    const index = this.facts.sample.indexOf(name);
    return this.samples.map((sample) => sample[index]);
  }

  /** Layers that a member has begun of a running chunk, as a fraction; null if none runs. */
  fraction(n, chunk, member) {
    const found = this.progress.get(n);
    if (!found || found.chunk !== chunk) return null;
    const layers = member === null ? Math.min(...found.layers) : found.layers[member];
    return Math.max(0, layers - 1) / this.facts.layers;
  }

  /** The layer that a running chunk is in at its slowest member, from 1; 0 before the first. */
  layer(n, chunk) {
    const found = this.progress.get(n);
    return found && found.chunk === chunk ? Math.min(...found.layers) : 0;
  }
}

/** Whether a request is over. */
export const over = (record) => record.ended_s !== null;

/** Measured and planned TTFT, seconds; null for what is not known. */
export function ttft(record) {
  return {
    measured: record.first_token_s === null ? null : record.first_token_s - record.arrival_s,
    planned: record.due_s === null ? null : record.due_s - record.arrival_s,
  };
}

/**
 * When the chunks of a request ran, run, or are to run: `{chunk, index, start, end, state}`, with
 * state done, running or planned; times in the server's seconds. `free` has for each instance when
 * what runs there should have ended: what does not pass cannot start before.
 */
export function chunkTimes(record, pool, now, free = []) {
  const found = [];
  let before = null;
  for (const [index, chunk] of record.chunks.entries()) {
    const [start, end] = chunk.ran;
    const planned = chunk.planned[1] - chunk.planned[0];
    if (start !== null && (end !== null || over(record))) {
      found.push({ chunk, index, start, end: end ?? record.ended_s, state: "done" });
      before = end ?? record.ended_s;
    } else if (record.one_instance && (record.first_token_s !== null || !over(record))) {
      found.push(batched(record, chunk, index, planned, now));
    } else if (over(record)) {
      break;
    } else if (start !== null) {
      const left = (1 - (pool.fraction(record.n, index, null) ?? 0)) * planned;
      const due = start + planned > now ? start + planned : now + left;
      found.push({ chunk, index, start, end: due, state: "running" });
      before = due;
    } else {
      const others = record.passes ? [] : chunk.instances.map((i) => free[i] ?? now);
      const from = Math.max(now, before ?? now, chunk.planned[0], ...others);
      found.push({ chunk, index, start: from, end: from + planned, state: "planned" });
      before = from + planned;
    }
  }
  return found;
}

/** In SGLang's own batches: its start is not told before its end. */
function batched(record, chunk, index, planned, now) {
  const start = Math.max(record.bound_s, chunk.planned[0]);
  if (record.first_token_s !== null) {
    const end = record.first_token_s;
    return { chunk, index, start: Math.min(start, end), end, state: "done" };
  }
  if (start > now) return { chunk, index, start, end: start + planned, state: "planned" };
  return { chunk, index, start, end: Math.max(now, start + planned), state: "running" };
}
