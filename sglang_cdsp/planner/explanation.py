"""A plan as text: its chunks, a Gantt chart of the pool, and the candidates that lost."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_cdsp.planner.types import Considered, Plan, PlannedChunk, PoolView

WIDTH = 60
SHOWN = 12
"""Candidates in the table; the rest are counted."""
CHUNK_MARKS = "123456789abcdefghijklmnopqrstuvwxyz"


def ranges(instances: Sequence[int]) -> str:
    """Instances as `0-3,8`: runs that count up are joined, the order is kept."""
    runs: list[list[int]] = []
    for i in instances:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def chunk_table(plan: Plan) -> str:
    """One line a chunk: tokens, SP size, start and end in seconds, instances in group order."""
    lines = ["chunk    tokens   SP   start s     end s   instances"]
    for number, chunk in enumerate(plan.chunks, 1):
        lines.append(
            f"{number:>5}{chunk.tokens:>10}{chunk.sp_size:>5}{chunk.start_s:>10.3f}"
            f"{chunk.end_s:>10.3f}   {ranges(chunk.instances)}"
        )
    return "\n".join(lines)


def gantt(plan: Plan | None, pool: PoolView) -> str:
    """One line an instance: `#` earlier work, digits the plan's chunks, `.` idle, `x` down."""
    ends = [*pool.queue_s, plan.ttft_s if plan else 0.0]
    scale = max(ends) / WIDTH or 1.0
    head = f"0 s{f'{max(ends):.3f} s':>{WIDTH - 3}}"
    lines = [f"instance  {head}   # earlier work, 1.. chunk, . idle"]
    for i in range(pool.size):
        if i and i % pool.instances_per_node == 0:
            lines.append(f"{'':>8}  {'-' * WIDTH}")
        lines.append(f"{i:>8}  {_bar(i, plan, pool, scale)}")
    return "\n".join(lines)


def considered_table(considered: Sequence[Considered]) -> str:
    """The candidates, best first: TTFT, instance-seconds, chunks, and why each lost."""
    lines = ["  TTFT s    inst-s   plan as tokens@SP, and why"]
    for candidate in considered[:SHOWN]:
        numbers = " " * 18
        if candidate.chunks:
            numbers = f"{candidate.ttft_s:>8.3f}{candidate.instance_seconds:>10.3f}"
        plan = short(candidate.chunks)
        if candidate.reused and plan:
            plan = f"({candidate.reused} cached) {plan}"
        lines.append(f"{numbers}   {plan}{': ' if plan else ''}{candidate.reason}")
    if len(considered) > SHOWN:
        lines.append(f"{'':>21}and {len(considered) - SHOWN} more; --json lists all")
    return "\n".join(lines)


def short(chunks: Sequence[PlannedChunk]) -> str:
    """Chunks as `53302@8 77770@16`."""
    return " ".join(f"{chunk.tokens}@{chunk.sp_size}" for chunk in chunks)


def _bar(i: int, plan: Plan | None, pool: PoolView, scale: float) -> str:
    if pool.up is not None and not pool.up[i]:
        return "x" * WIDTH
    cells = []
    for column in range(WIDTH):
        now = (column + 0.5) * scale
        mark = "#" if now < pool.queue_s[i] else "."
        for number, chunk in enumerate(plan.chunks if plan else ()):
            if i in chunk.instances and chunk.start_s <= now < chunk.end_s:
                mark = CHUNK_MARKS[number % len(CHUNK_MARKS)]
        cells.append(mark)
    return "".join(cells)
