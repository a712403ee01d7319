"""Plans whose home decodes, run on instances of one thread."""

from __future__ import annotations

import random

import torch

from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.protocol.messages import GoOrder
from tests.engine.one_thread import Instance, pool_of, task_on
from tests.engine.plans import Chunks


def run(chunks: Chunks, page: int, seed: int) -> tuple[list[Instance], list[ChunkTask]]:
    """Run a plan whose home decodes, members in a drawn order."""
    draw = random.Random(seed)
    instances = pool_of(page, seed)
    tasks = [task_on(instance, 0, chunks, page) for instance in instances]
    for number, (_, group) in enumerate(chunks):
        order = GoOrder(seq=0, chunk=number, lane=0, serial=number + 1)
        for member in group:
            task = tasks[member]
            task.gathers = True
            instances[member].begin(task, order, {})
        while any(len(instance.coroutines) for instance in instances):
            draw.choice(instances).coroutines.turn()
    return instances, tasks


def kv_of(instance: Instance, slots: torch.Tensor) -> torch.Tensor:
    """K and V of all layers at these slots."""
    return instance.pool.kv[:, :, slots]
