"""One failed tensor-parallel rank is a failure of all, or the end; real processes, real gloo."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from sglang_cdsp.engine.agreement import Agreement, RanksDivergedError

SIZE = 2
TOGETHER = (("", ""), ("broke", ""), ("", "broke"), ("broke", "broke too"))


def _rank(me: int, directory: Path) -> None:
    store = FileStore(str(directory / "store"), SIZE)
    dist.init_process_group("gloo", store=store, rank=me, world_size=SIZE)
    agreement = Agreement(dist.group.WORLD, SIZE)
    said = [agreement.reach(errors[me]) for errors in TOGETHER]
    for (mine, theirs), heard in zip([(e[me], e[1 - me]) for e in TOGETHER], said, strict=True):
        assert heard == (mine or ("another tensor-parallel rank failed" if theirs else ""))
    dist.barrier()
    if me == 0:  # its partner never comes: it waits inside the model
        hasty = Agreement(dist.group.WORLD, SIZE, timedelta(seconds=1))
        with pytest.raises(RanksDivergedError, match=r"broke; .* restart it"):
            hasty.reach("broke")
    (directory / f"done{me}").touch()


def test_ranks_agree_on_how_a_chunk_went(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=_rank, args=(me, tmp_path)) for me in range(SIZE)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert sorted(path.name for path in tmp_path.glob("done*")) == ["done0", "done1"]


def test_a_rank_alone_has_nobody_to_ask() -> None:
    assert Agreement(None, 1).reach("broke") == "broke"
    assert Agreement(None, 1).reach("") == ""
