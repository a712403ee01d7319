"""What the tensor-parallel ranks of an instance agree on; real processes, real gloo."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from sglang_cdsp.engine.agreement import Agreement, RanksDivergedError

SIZE = 2
TOGETHER = (([2, 1], [1, 2]), ([0], [2]), ([2, 2, 1], [2, 2, 1]))


def _rank(me: int, directory: Path) -> None:
    store = FileStore(str(directory / "store"), SIZE)
    dist.init_process_group("gloo", store=store, rank=me, world_size=SIZE)
    agreement = Agreement(dist.group.WORLD, SIZE)
    said = [agreement.least(numbers[me]) for numbers in TOGETHER]
    assert said == [[1, 1], [0], [2, 2, 1]]
    dist.barrier()
    if me == 0:  # its partner never comes: it waits inside the model
        hasty = Agreement(dist.group.WORLD, SIZE, timedelta(seconds=1))
        with pytest.raises(RanksDivergedError, match="restart it"):
            hasty.least([1])
    (directory / f"done{me}").touch()


def test_ranks_agree_on_the_least(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=_rank, args=(me, tmp_path)) for me in range(SIZE)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert sorted(path.name for path in tmp_path.glob("done*")) == ["done0", "done1"]


def test_a_rank_alone_has_nobody_to_ask() -> None:
    assert Agreement(None, 1).least([3, 0]) == [3, 0]
