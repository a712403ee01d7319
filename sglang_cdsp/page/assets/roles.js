// What seats do by their role, and requests that move from one to another, in words.

import { named, seconds, whole } from "./words.js";

/** The role of a seat as it is shown: "prefill", "decode", "" for both and where there are none. */
export const roleOf = (instance) =>
  instance.role === "prefill" || instance.role === "decode" ? instance.role : "";

const DOES = { prefill: "to prefill only", decode: "to decode only", both: "to prefill and decode" };

/** "Instance 2 is to decode only from here on: asked for" */
export const roleWords = (change) =>
  `Instance ${change.seat} is ${DOES[change.role] ?? change.role} from here on: ${change.why}`;

/** How long a request stood still for a move: "37 ms", "0.41 s". */
export function pause(move) {
  const stood = move.arrived_s - move.left_s;
  if (stood >= 0.1) return seconds(stood);
  return stood < 0.0005 ? "under 1 ms" : `${Math.round(stood * 1000)} ms`;
}

/** "chat-7 leaves for instance 2: 1,234 tokens of KV, pause of 0.04 s" */
export function movesWords(record, move, leaves) {
  const where = leaves ? `leaves for ${named([move.to])}` : `arrives from ${named([move.from])}`;
  return `${record.rid} ${where}: ${whole(move.tokens)} tokens of KV, pause of ${pause(move)}`;
}

/** Whether a pool has seats that do not do both, or had some lately. */
export const hasRoles = (pool) =>
  pool.instances.some((instance) => roleOf(instance)) || pool.roleChanges.length > 0;

/** Whether a request that is known has moved. */
export const hasMoves = (pool) =>
  [...pool.requests.values()].some((record) => record.moved > 0);
