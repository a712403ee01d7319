"""What a switch of coroutines costs under tensor parallelism: a message among the ranks.

    python -m bench.micro.agreement [--ranks 2] [--numbers 3] [--rounds 2000]

Each rank is a process; they agree again and again, as before each switch of a chunk's forward.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

from sglang_cdsp.cli.parser import OneLineParser, integer
from sglang_cdsp.engine.agreement import Agreement
from sglang_cdsp.protocol.ports import free_ports


def run_rank(rank: int, ranks: int, numbers: int, rounds: int, port: int, times: Any) -> None:
    """One rank; the first one keeps its times, in seconds."""
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks
    )
    agreement = Agreement(dist.group.WORLD, ranks)
    found = []
    for turn in range(rounds):
        start = time.perf_counter()
        agreement.least([turn] * numbers)
        found.append(time.perf_counter() - start)
    if rank == 0:
        times.put(found[rounds // 10 :])
        times.close()
        times.join_thread()
    dist.barrier()
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the ranks and print the median and the 99th percentile."""
    parser = OneLineParser(prog="python -m bench.micro.agreement", description=__doc__)
    parser.add_argument("--ranks", type=integer(2, 64), default=2)
    parser.add_argument("--numbers", type=integer(1), default=3, help="coroutines and one more")
    parser.add_argument("--rounds", type=integer(100, 1_000_000), default=2000)
    options = parser.parse_args(arguments)
    spawn = mp.get_context("spawn")
    times = spawn.Queue()
    (port,) = free_ports(1)
    shared = (options.ranks, options.numbers, options.rounds, port, times)
    ranks = [spawn.Process(target=run_rank, args=(rank, *shared)) for rank in range(options.ranks)]
    for rank in ranks:
        rank.start()
    found = sorted(times.get())
    for rank in ranks:
        rank.join()
    p50, p99 = statistics.median(found), found[len(found) * 99 // 100]
    print(
        f"{options.ranks} ranks agree on {options.numbers} numbers in {p50 * 1e6:.0f} us (P50), "
        f"{p99 * 1e6:.0f} us (P99)"
    )


if __name__ == "__main__":
    main()
