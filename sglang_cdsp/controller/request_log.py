"""SGLang's log as an operator reads it: what runs, and a line for each request that ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from sglang_cdsp.controller.effects import Observer
from sglang_cdsp.controller.request import PoolRequest

logger = logging.getLogger(__name__)

LONGEST_RID, LONGEST_WORDS = 64, 300


class RequestLog(Observer):
    """One line a request at info level, when it has ended; probes are left out.

    SGLang's ``--log-level`` decides whether it shows.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: monotonic seconds."""
        self._clock = clock

    def ended(self, request: PoolRequest) -> None:
        """Log one ended request."""
        if not request.probe and logger.isEnabledFor(logging.INFO):
            logger.info("%s", line(request, self._clock()))


def line(request: PoolRequest, now_s: float) -> str:
    """What is said of an ended request: ``rid: 9000 tokens, 2734@1 then 5266@2, waited 0.10 s,
    TTFT 1.75 s (planned 1.70)``, a chunk as tokens@SP size.

    Args:
        now_s: its end, on the clock of its arrival.
    """
    words = [f"{shown(request.rid, LONGEST_RID)}: {request.prompt_tokens} tokens"]
    plan = request.plan
    if plan is not None:
        if plan.reused:
            words.append(f"{plan.reused} cached on {plan.home}")
        words.append(" then ".join(f"{chunk.tokens}@{chunk.sp_size}" for chunk in plan.chunks))
        starts_s = request.times[0].start_s if request.times else None
        if starts_s is not None:
            words.append(f"waited {starts_s - request.arrival_s:.2f} s")
        if plan.passes:
            words.append("passed others")
    if request.replans:
        times = len(request.replans)
        words.append("planned anew" if times == 1 else f"planned anew {times} times")
    if plan is not None and request.first_token_s is not None:
        words.append(f"TTFT {request.first_token_s - request.arrival_s:.2f} s")
        if request.resumes is None:  # else its first token was of an earlier plan
            planned_s = request.bound_s - request.arrival_s + plan.ttft_s
            words[-1] += f" (planned {planned_s:.2f})"
    if request.resumes is not None:
        words.append(f"computed anew after {len(request.resumes.tokens)} tokens of output")
    if request.moves:
        words.append(f"moved {' -> '.join(_homes(request))}")
    if request.decodes and request.last_token_s is not None:
        seconds = request.last_token_s - request.arrival_s
        words.append(f"{len(request.output.tokens)} tokens out by {seconds:.2f} s")
    if request.outcome != "finished":
        why = shown(request.error, LONGEST_WORDS)
        words.append(f"{request.outcome} after {now_s - request.arrival_s:.2f} s: {why}")
    return ", ".join(words)


def _homes(request: PoolRequest) -> Sequence[str]:
    """Where a request was decoded, one instance after the other."""
    moves = request.moves
    return [str(moves[0].source), *(str(move.target) for move in moves)]


def start_line(
    *,
    instances: int,
    tp_size: int,
    policy: str,
    sp_sizes: Sequence[int],
    improvement_rate: float,
    latency_model: str,
    links: str,
    transfer: str | None,
    capacity_tokens: int,
) -> str:
    """What runs, in one line.

    Args:
        latency_model: where it comes from: given, kept or measured; follows its name.
        links: their kind.
        transfer: SGLang's transfer backend, to decode; None where instances decode themselves.
        capacity_tokens: KV slots of an instance.
    """
    ranks = f" of {tp_size} ranks each" if tp_size > 1 else ""
    decode = f"KV to decode over {transfer}" if transfer else "each decodes"
    return (
        f"sglang-cdsp: {instances} instances{ranks}, {capacity_tokens} KV tokens each; policy "
        f"{policy}, SP sizes {', '.join(map(str, sp_sizes))}, improvement rate "
        f"{improvement_rate:g}; latency model {latency_model}; links {links or 'none'}, {decode}"
    )


def shown(words: str, longest: int) -> str:
    """One line of printable characters: ids and some errors are the clients' own."""
    line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    return line if len(line) <= longest else f"{line[: longest - 2]}.."
