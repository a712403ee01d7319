"""The time of a chunk's attention layers, in this source tree and in another one, turn by turn.

    python -m bench.micro.chunk --against COMMIT [--turns 10]

The other tree is a commit of this repository, or a folder.

Each tree has a process of its own, on one thread; they take turns, so that whatever else the
machine does concerns both. A case is a chunk's 32 attention layers as SGLang calls them, with small
heads, so that what surrounds attention shows. Times are quartiles of the turns, by the wall clock
and by the processor's, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sglang_cdsp.cli.parser import OneLineParser

LAYERS = 32
Q_HEADS, KV_HEADS, DIM = 8, 2, 64
WORKER = "--worker"
HERE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """A chunk of ``tokens`` after ``history`` on ``members`` instances."""

    tokens: int
    history: int
    members: int


CASES = (Case(64, 64, 1), Case(512, 2048, 1), Case(128, 128, 2), Case(1024, 2048, 2))


class Pool:
    """KV of all layers by slot, on the host."""

    def __init__(self, slots: int) -> None:
        import torch

        draw = torch.Generator().manual_seed(1)
        self.kv = torch.randn(LAYERS, 2, slots, KV_HEADS, DIM, generator=draw)

    def get_key_buffer(self, layer_id: int) -> Any:
        """K of a layer."""
        return self.kv[layer_id, 0]

    def get_value_buffer(self, layer_id: int) -> Any:
        """V of a layer."""
        return self.kv[layer_id, 1]

    def set_kv_buffer(self, layer: Any, where: Any, k: Any, v: Any) -> None:
        """Store rows."""
        self.kv[layer.layer_id, 0, where.loc] = k.view(-1, KV_HEADS, DIM)
        self.kv[layer.layer_id, 1, where.loc] = v.view(-1, KV_HEADS, DIM)


def chunk_of(case: Case) -> Callable[[], tuple[float, float]]:
    """Prepare a case; what is returned runs it once: seconds of the wall clock and of the CPU."""
    import torch
    from sglang.srt.layers.radix_attention import RadixAttention

    from sglang_cdsp.attention.backend import ShardAttention
    from sglang_cdsp.attention.ring import RingLayout
    from sglang_cdsp.parallel.spans import split_chunk, tokens_of
    from sglang_cdsp.testing.links import thread_lanes
    from sglang_cdsp.testing.rings import in_threads

    lanes = thread_lanes(case.members)
    held = (case.history // case.members,) * case.members
    pieces = split_chunk(case.history, case.tokens, case.members, 1)
    layers = [RadixAttention(Q_HEADS, DIM, DIM**-0.5, KV_HEADS, layer_id=i) for i in range(LAYERS)]
    pools = [Pool(case.history + case.tokens) for _ in range(case.members)]

    def member(me: int) -> None:
        own = tokens_of(pieces[me])
        slots = torch.arange(held[me] + own)
        attention = ShardAttention(
            inner=SimpleNamespace(token_to_kv_pool=pools[me], req_to_token_pool=None),
            layout=RingLayout(tuple(range(case.members)), me, held, pieces),
            links=lanes[me] if case.members > 1 else None,
            own_slots=slots[held[me] :],
            history_slots=slots[: held[me]],
            rebalancer=None,
        )
        batch: Any = SimpleNamespace(out_cache_loc=slots[held[me] :])
        q = torch.ones(own, Q_HEADS * DIM)
        k = torch.ones(own, KV_HEADS * DIM)
        with torch.inference_mode():
            for layer in layers:
                attention.forward(q, k, k, layer, batch)

    def run() -> tuple[float, float]:
        started, used = time.perf_counter(), time.process_time()
        if case.members == 1:
            member(0)
        else:
            in_threads(member, range(case.members))
        return time.perf_counter() - started, time.process_time() - used

    return run


def work() -> None:
    """A worker: for each line of its input it runs all cases and prints their times."""
    import torch

    torch.set_num_threads(1)
    runs = [chunk_of(case) for case in CASES]
    for run in runs:
        run()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps([run() for run in runs]), flush=True)


@contextmanager
def tree_of(named: str) -> Iterator[Path]:
    """The source tree of a folder, or of a commit, whose files are there until the block ends.

    Raises:
        ValueError: it is neither.
    """
    if Path(named).is_dir():
        yield Path(named).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="bench-chunk-") as folder:
        archive = ["git", "-C", str(HERE), "archive", f"{named}^{{commit}}"]
        packed = subprocess.run(archive, check=False, capture_output=True)
        if packed.returncode:
            raise ValueError(f"{named!r} is no folder and no commit of this repository")
        subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        yield Path(folder)


def worker(tree: Path) -> subprocess.Popen[str]:
    """Start the worker of a source tree."""
    path = os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), WORKER],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tree,
    )
    answer(process)
    return process


def answer(process: subprocess.Popen[str]) -> str:
    """The next line that is an answer; imports print others."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(("ready", "[")):
            return line
    raise SystemExit("a worker ended early; its last words are above")


def main() -> None:
    """Measure and print."""
    parser = OneLineParser(prog="python -m bench.micro.chunk", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--against", required=True, metavar="COMMIT")
    parser.add_argument("--turns", type=int, default=10)
    options = parser.parse_args()
    try:
        with tree_of(options.against) as other:
            times = measured({"this": HERE, "other": other}, options.turns)
    except ValueError as error:
        parser.error(str(error))
    for number, case in enumerate(CASES):
        told: dict[str, Any] = {"case": asdict(case)}
        for name in times:
            told[name] = {
                clock: spread([1e3 * turn[number][which] for turn in times[name]])
                for which, clock in enumerate(("wall_ms", "cpu_ms"))
            }
        print(json.dumps(told))


def measured(trees: Mapping[str, Path], turns: int) -> dict[str, list[list[list[float]]]]:
    """Seconds by tree, turn, case and clock (wall, processor)."""
    workers = {name: worker(tree) for name, tree in trees.items()}
    times: dict[str, list[list[list[float]]]] = {name: [] for name in trees}
    try:
        for turn in range(turns):
            order = list(workers) if turn % 2 else list(reversed(workers))
            for name in order:
                stdin = workers[name].stdin
                assert stdin is not None
                stdin.write("go\n")
                stdin.flush()
                times[name].append(json.loads(answer(workers[name])))
    finally:
        for process in workers.values():
            process.kill()
    return times


def spread(numbers: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    return [round(number, 2) for number in statistics.quantiles(numbers, n=4)]


if __name__ == "__main__":
    if WORKER in sys.argv:
        work()
    else:
        main()
