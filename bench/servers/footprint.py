"""What one server costs beside stock before it computes anything, and what a move costs.

    python -m bench.servers.footprint [--instances 2] [--moves 12] [--out FILE]

Stock SGLang with as many replicas starts first, then one server that measures its latency model,
then one that keeps the one that was measured; one after the other, so that none takes memory or
time of another. Told are seconds from the launch to the first healthy answer, and the proportional
set size (PSS) of each process after a prompt on each instance. In the last server requests then
decode while the roles of two seats change places: told is for how long each stood still between two
steps, by the rows of KV that moved.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from bench.servers.flags import check
from sglang_cdsp.args import CACHE_VAR
from sglang_cdsp.cli.parser import OneLineParser, integer
from sglang_cdsp.stack.processes import ServerProcess
from sglang_cdsp.testing.checkpoint import write_checkpoint
from sglang_cdsp.testing.first_token import prompt_tokens
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import Deployment, RunningStack, one_server, running, single

SLOTS = 40_000
CONTEXT = ("--context-length", "20000")
FIRST_PROMPT = 4_000
LENGTHS = (500, 2_000, 8_000)
"""Tokens of the prompts that move."""

TOGETHER = 8
"""Requests of the middle length that move at once."""

OUTPUT = 1_000
TURN_EVERY_S = 1.0
TIMEOUT_S = 300.0
KINDS = {"scheduler": "scheduler", "data_parallel_controller": "controller", "detok": "detokenizer"}
"""Kinds of processes by a part of their titles; what has another one serves HTTP or is a helper."""


@dataclass(frozen=True)
class Process:
    """One process of a server. pss_mib: its proportional set size, MiB; kind: what it does."""

    kind: str
    pss_mib: float


@dataclass(frozen=True)
class Start:
    """A server that has started. seconds: from its launch until it answered as healthy."""

    name: str
    seconds: float
    processes: tuple[Process, ...]


@dataclass(frozen=True)
class Moved:
    """A move of a running request.

    Attributes:
        at_once: requests that decoded with it.
        rows: of KV that moved.
        pause_s: from leaving one running batch to joining the other.
        ready_s: before that, from when the target was asked; the request decoded meanwhile.
    """

    at_once: int
    rows: int
    pause_s: float
    ready_s: float


def kind_of(title: str) -> str:
    """What a process does, by its command line."""
    return next((kind for part, kind in KINDS.items() if part in title), "HTTP and helpers")


def processes_of(server: ServerProcess) -> tuple[Process, ...]:
    """The living processes of a server with their memory."""
    found = []
    for pid in server.members():
        try:
            process = psutil.Process(pid)
            title, pss = " ".join(process.cmdline()), process.memory_full_info().pss
        except psutil.Error:
            continue  # it has just ended
        found.append(Process(kind_of(title), pss / 2**20))
    return tuple(sorted(found, key=lambda process: (process.kind, -process.pss_mib)))


def moves_of(lines: Iterable[str], at_once: Mapping[str, int]) -> list[Moved]:
    """The moves that a plan log tells of, of the requests in ``at_once``."""
    found = []
    for line in map(json.loads, lines):
        for move in line.get("moves", ()) if line.get("rid") in at_once else ():
            pause_s, ready_s = move["arrived_s"] - move["left_s"], move["left_s"] - move["asked_s"]
            found.append(Moved(at_once[line["rid"]], move["tokens"], pause_s, ready_s))
    return found


def measure_start(name: str, stack: RunningStack, instances: int, *, pool: bool) -> Start:
    """Send each instance a prompt, and look at the processes."""
    for seat in range(instances):
        sampling: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0}
        body: dict[str, Any] = {"input_ids": prompt_tokens(seat, FIRST_PROMPT)}
        body["sampling_params"] = sampling
        if pool:
            sampling["custom_params"] = {"cdsp_plan": [[FIRST_PROMPT, [seat]]]}
        else:
            body["routed_dp_rank"] = seat
        answer = requests.post(f"{stack.url}/generate", json=body, timeout=TIMEOUT_S)
        answer.raise_for_status()
    (server,) = stack.servers.values()
    return Start(name, stack.start_s, processes_of(server))


class Mover:
    """Lets requests of one server move between its first two seats."""

    def __init__(self, url: str, plan_log: Path, wanted: int) -> None:
        """``wanted``: moves for each length at least."""
        self._url, self._log, self._wanted = url, plan_log, wanted
        self._number = 0

    def moves(self) -> list[Moved]:
        """All moves: each length alone, then several requests of the middle one at once."""
        asked: dict[str, int] = {}
        for length, at_once in [*((n, 1) for n in LENGTHS), (LENGTHS[1], TOGETHER)]:
            missing = self._wanted
            while missing > 0:
                rids = self._round(length, at_once)
                asked.update(dict.fromkeys(rids, at_once))
                missing -= len(moves_of(self._lines(rids), dict.fromkeys(rids, at_once)))
        return moves_of(self._lines(asked), asked)

    def _round(self, length: int, at_once: int) -> list[str]:
        """Some requests that decode while the seats turn, to their ends."""
        rids = [f"move-{self._number + i}" for i in range(at_once)]
        with ThreadPoolExecutor(at_once) as threads:
            ends = [
                threads.submit(self._ask, rid, self._number + i, length)
                for i, rid in enumerate(rids)
            ]
            self._turn_until(ends)
            for end in ends:
                end.result()
        self._number += at_once
        return rids

    def _turn_until(self, ends: Sequence[Future[None]]) -> None:
        turned = 0
        while not all(end.done() for end in ends):
            roles = ("prefill", "decode")[:: 1 if turned % 2 else -1]
            self._update({"0": roles[0], "1": roles[1]})
            turned += 1
            time.sleep(TURN_EVERY_S)
        self._update({"0": "both", "1": "both"})

    def _update(self, roles: Mapping[str, str]) -> None:
        answer = requests.post(f"{self._url}/cdsp/update", json={"roles": roles}, timeout=30)
        answer.raise_for_status()

    def _ask(self, rid: str, seed: int, length: int) -> None:
        sampling = {"max_new_tokens": OUTPUT, "temperature": 0, "ignore_eos": True}
        body: dict[str, Any] = {
            "rid": rid,
            "input_ids": prompt_tokens(100 + seed, length),
            "sampling_params": sampling,
            "stream": True,
        }
        requests.post(f"{self._url}/generate", json=body, timeout=TIMEOUT_S).raise_for_status()

    def _lines(self, rids: Iterable[str]) -> list[str]:
        """The plan log's lines, once it has these requests."""
        deadline = time.monotonic() + 10.0
        while True:
            lines = self._log.read_text(encoding="utf-8").splitlines()
            there = {json.loads(line).get("rid") for line in lines}
            if there.issuperset(rids) or time.monotonic() > deadline:
                return lines
            time.sleep(0.1)


def measure(instances: int, wanted: int, scratch: Path) -> tuple[list[Start], list[Moved]]:
    """All starts, and the moves in the last server."""
    checkpoint = write_checkpoint(scratch / "checkpoint")
    plan_log = scratch / "plans.jsonl"
    common = ("--dp-size", str(instances), "--max-total-tokens", str(SLOTS), *CONTEXT)
    more = ("--cdsp-allow-request-plans", "--cdsp-plan-log", str(plan_log))
    starts: list[Start] = []
    with served(single(checkpoint, flags=common), scratch / "stock") as stack:
        starts.append(measure_start("stock", stack, instances, pool=False))
    with kept_models(scratch / "cache"):
        for name in ("measures its latency model", "keeps it"):
            pool = one_server(checkpoint, flags=(*common, *more))
            with served(pool, scratch / name.split()[0]) as stack:
                starts.append(measure_start(name, stack, instances, pool=True))
                moved = Mover(stack.url, plan_log, wanted).moves() if len(starts) == 3 else []
    return starts, moved


def served(plan: Deployment, logs: Path) -> Any:
    """Servers that run in the block, their starts told on stderr."""
    return running(plan, logs, progress=lambda line: print(line, file=sys.stderr, flush=True))


@contextmanager
def kept_models(folder: Path) -> Iterator[None]:
    """Servers that start in the block keep their latency models in a folder."""
    before = os.environ.get(CACHE_VAR)
    os.environ[CACHE_VAR] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(CACHE_VAR)
        if before is not None:
            os.environ[CACHE_VAR] = before


def tables(starts: Sequence[Start], moved: Sequence[Moved]) -> str:
    """What was measured, as Markdown."""
    lines = ["| server | ready after | PSS of all processes | of each |", "|---|---|---|---|"]
    for start in starts:
        each = ", ".join(f"{p.kind} {p.pss_mib:.0f}" for p in start.processes)
        total = sum(process.pss_mib for process in start.processes)
        lines.append(f"| {start.name} | {start.seconds:.1f} s | {total:.0f} MiB | {each} |")
    lines += [
        "",
        "| at once | rows of KV | moves | pause P50 | longest | asked before, P50 |",
        "|---|---|---|---|---|---|",
    ]
    by_kind: dict[tuple[int, int], list[Moved]] = {}
    for move in moved:
        floor = max(n for n in LENGTHS if n <= move.rows)
        by_kind.setdefault((move.at_once, floor), []).append(move)
    for (at_once, floor), some in sorted(by_kind.items()):
        pauses = [move.pause_s for move in some]
        rows = f"{floor} to {max(move.rows for move in some)}"
        ready = statistics.median(move.ready_s for move in some)
        lines.append(
            f"| {at_once} | {rows} | {len(some)} | {statistics.median(pauses) * 1e3:.0f} ms | "
            f"{max(pauses) * 1e3:.0f} ms | {ready * 1e3:.0f} ms |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; returns the exit status."""
    parser = OneLineParser(prog="python -m bench.servers.footprint", description=__doc__)
    parser.add_argument("--instances", type=integer(2, 8), default=2)
    parser.add_argument("--moves", type=integer(1, 1000), default=12, help="for each length")
    parser.add_argument("--out", type=Path, metavar="FILE", help="every figure, JSON")
    options = parser.parse_args(arguments)
    check(parser, options, files=("out",))
    with kept_on_failure("bench-footprint") as scratch:
        starts, moved = measure(options.instances, options.moves, scratch)
    if options.out is not None:
        raw = {"starts": [asdict(s) for s in starts], "moves": [asdict(m) for m in moved]}
        options.out.write_text(json.dumps(raw) + "\n", encoding="utf-8")
    print(tables(starts, moved))
    return 0


if __name__ == "__main__":
    sys.exit(main())
