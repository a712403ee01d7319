"""Instances of one rank in one thread: slots, KV, links, coroutines and a model of attention alone.

They share one process's forward context, as two suspended forwards of one instance do.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_context import get_attn_backend

from sglang_cdsp.attention.partial import reference_attention
from sglang_cdsp.engine.agreement import Agreement
from sglang_cdsp.engine.coroutines import Coroutines, StoppedError
from sglang_cdsp.engine.forward_state import ForwardSurroundings
from sglang_cdsp.engine.shard_runner import ShardDone, ShardRunner
from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.parallel.chunk_layout import plan_layout
from sglang_cdsp.parallel.links.lanes import LinkHub
from sglang_cdsp.parallel.links.threads import Switchboard, ThreadLinks
from sglang_cdsp.parallel.links.types import LinkShape
from sglang_cdsp.parallel.ranks import ALONE, Ranks
from sglang_cdsp.protocol.messages import GoOrder
from tests.engine.fake_kv import StrictAllocator
from tests.engine.fake_stock import FakeScheduler
from tests.engine.family_models import Kind
from tests.engine.plans import Chunks

INSTANCES, LAYERS = 3, 2
SHAPE = LinkShape(lanes=3, depth=2, slot_bytes=512)
Q_HEADS, KV_HEADS, DIM = 4, 2, 8
LONGEST = 600


def fixed(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


EMBEDDING = fixed(LONGEST, Q_HEADS * DIM, seed=1)
PLACES = fixed(LONGEST, Q_HEADS * DIM, seed=2)
QKV = fixed(LAYERS, Q_HEADS * DIM, (Q_HEADS + 2 * KV_HEADS) * DIM, seed=3) / 6


def project(hidden: torch.Tensor, layer: int) -> tuple[torch.Tensor, ...]:
    """Q ``[T, Hq * D]``, K and V ``[T, Hkv * D]`` of a layer."""
    widths = [Q_HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM]
    return torch.split(hidden @ QKV[layer].to(hidden.dtype), widths, dim=1)


def alone(tokens: torch.Tensor) -> torch.Tensor:
    """The model over the whole prompt at once, ``[L, Hq * D]``, float64."""
    places = PLACES[: tokens.numel()].double()
    hidden = EMBEDDING[tokens].double()
    for layer in range(LAYERS):
        heads = (x.view(-1, x.shape[1] // DIM, DIM) for x in project(hidden + places, layer))
        out, _ = reference_attention(*heads, causal=True, scale=DIM**-0.5)
        hidden = torch.tanh(hidden + places + out.flatten(1)) - places
    return hidden + places


class Pool:
    """KV of one instance; what was never written is not a number."""

    dtype = torch.float32

    def __init__(self, slots: int) -> None:
        self.kv = torch.full((LAYERS, 2, slots, KV_HEADS, DIM), float("nan"))

    def get_key_buffer(self, layer_id: int, /) -> torch.Tensor:
        return self.kv[layer_id, 0]

    def get_value_buffer(self, layer_id: int, /) -> torch.Tensor:
        return self.kv[layer_id, 1]

    def set_kv_buffer(self, layer: Any, where: Any, k: torch.Tensor, v: torch.Tensor) -> None:
        rows = (-1, KV_HEADS, DIM)
        self.kv[layer.layer_id, 0, where.loc] = k.view(rows)
        self.kv[layer.layer_id, 1, where.loc] = v.view(rows)


class Model(torch.nn.Module):
    """A model of attention alone, and SGLang's runner of it.

    With ``shared`` it reads positions from one static buffer at every layer, as SGLang's eager
    runner lets models do.
    """

    def __init__(self, *, shared: bool = False) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            RadixAttention(Q_HEADS, DIM, DIM**-0.5, KV_HEADS, layer_id=layer)
            for layer in range(LAYERS)
        )
        self.shared = torch.zeros(LONGEST, dtype=torch.int64) if shared else None

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, batch: Any) -> Any:
        if self.shared is not None:
            self.shared[: positions.numel()] = positions
            positions = self.shared[: positions.numel()]
        hidden = EMBEDDING[input_ids]
        for number, layer in enumerate(self.layers):
            q, k, v = project(hidden + PLACES[positions], number)
            out = get_attn_backend().forward(q, k, v, layer, batch)
            hidden = torch.tanh(hidden + PLACES[positions] + out) - PLACES[positions]
        return SimpleNamespace(hidden=hidden + PLACES[positions])


class Instance:
    """One instance of one rank, with its slots, KV, links, coroutines and runner."""

    def __init__(
        self,
        number: int,
        page: int,
        board: Switchboard,
        shake: random.Random,
        *,
        shared: bool,
        kind: Kind | None = None,
        ranks: Callable[[Instance], Ranks] = lambda instance: ALONE,
        agreement: Agreement | None = None,
    ) -> None:
        self.number = number
        self.allocator = StrictAllocator(LONGEST * 4 // page, page)
        slots = LONGEST * 4 + 2 * page
        self.pool: Any = kind.pool(slots) if kind else Pool(slots)
        model_runner = SimpleNamespace(
            model=kind.model() if kind else Model(shared=shared),
            device="cpu",
            dtype=torch.float32,
            token_to_kv_pool=self.pool,
            attn_backend=SimpleNamespace(token_to_kv_pool=self.pool, req_to_token_pool=None),
            _extend_forward_kwargs=lambda batch, proxies: {},
        )
        scheduler = FakeScheduler(tp_worker=SimpleNamespace(model_runner=model_runner))
        self.hub = LinkHub(
            ThreadLinks(board, number, 1, SHAPE),
            SHAPE,
            lambda ready: self.coroutines.give_way(ready),
        )
        self.coroutines = Coroutines(
            surroundings=ForwardSurroundings("cpu"),
            ranks=agreement or Agreement(None, 1),
            leads=True,
            stretch_s=0.0,
            poll=self.hub.poll,
            interrupted=lambda: True,
            shake=shake,
        )
        self.layers: list[int] = []
        self.runner = ShardRunner(
            scheduler,
            self.hub,
            number,
            self.coroutines.give_way,
            self.layers.append,
            ranks=ranks(self),
        )
        self.stored: list[int] = []
        self.outputs: dict[int, Any] = {}
        finish = lambda task, forward, logits: self.outputs.__setitem__(task.seq, logits)  # noqa: E731
        self.runner._finish = finish  # type: ignore[method-assign]
        self.stopped: list[str] = []
        self.done: list[ShardDone] = []

    def begin(self, task: ChunkTask, order: GoOrder, found: dict[int, torch.Tensor]) -> None:
        """Start a chunk as ``ChunkWork`` does; hidden states go into ``found`` by position."""
        layout = task.layouts[order.chunk]
        self.get_ready(task, order.chunk)

        def body() -> None:
            try:
                self.coroutines.give_way()
                forward = self._run(task, order)
            except StoppedError as error:
                self.stopped.append(str(error))
                return
            finally:
                task.running = None
                if task.lane is not None:
                    task.lane.close()
            spans = layout.shard(self.number)
            positions = [p for span in spans for p in range(span.start, span.stop)]
            found.update(zip(positions, forward.hidden, strict=False))
            task.next_chunk = order.chunk + 1
            if task.gathers and task.is_final(order.chunk) and task.home == self.number:
                return  # home is to hold the whole prompt
            task.slot_table.drop(move.span for move in layout.moves if move.src == self.number)

        task.running = self.coroutines.start("chunk", (0, task.seq), body)

    def get_ready(self, task: ChunkTask, chunk: int) -> None:
        """Take the slots of a chunk, once."""
        task.next_chunk = chunk
        if task.prepared != chunk:
            task.take_slots(self.number)

    def _run(self, task: ChunkTask, order: GoOrder) -> Any:
        self.done.append(self.runner.run(task, order, self.stored.append))
        return self.outputs.pop(task.seq)


def pool_of(
    page: int,
    seed: int,
    *,
    shared: bool = False,
    kind: Kind | None = None,
    ranks: Callable[[Instance], Ranks] = lambda instance: ALONE,
    agreement: Agreement | None = None,
) -> list[Instance]:
    board = Switchboard()
    shake = random.Random(seed)
    instances = [
        Instance(i, page, board, shake, shared=shared, kind=kind, ranks=ranks, agreement=agreement)
        for i in range(INSTANCES)
    ]
    said = {(i.number, j): i.hub.invite(j) for i in instances for j in range(INSTANCES)
            if j != i.number}  # fmt: skip
    for (me, other), invitation in said.items():
        instances[other].hub.join(me, 1, invitation)
    return instances


def task_on(instance: Instance, seq: int, chunks: Chunks, page: int) -> ChunkTask:
    length = sum(tokens for tokens, _ in chunks)
    return ChunkTask(
        seq=seq,
        rid="r",
        room=None,
        probe=True,  # nothing is sampled
        layouts=plan_layout(chunks, page),
        tokens=(torch.arange(length) * 7 + 13 * seq) % LONGEST,
        slot_table=SlotTable(instance.allocator, page),
        next_chunk=0,
    )


def run_plan(
    chunks: Chunks, page: int, seed: int, *, gathers: bool = True, kind: Kind | None = None
) -> tuple[list[Instance], list[ChunkTask]]:
    """Run a plan alone, members in a drawn order; with ``gathers`` home ends with all KV.

    A chunk's serial is its number and one.
    """
    draw = random.Random(seed)
    instances = pool_of(page, seed, kind=kind)
    tasks = [task_on(instance, 0, chunks, page) for instance in instances]
    for number, (_, group) in enumerate(chunks):
        order = GoOrder(seq=0, chunk=number, lane=0, serial=number + 1)
        for member in group:
            tasks[member].gathers = gathers
            instances[member].begin(tasks[member], order, {})
        while any(len(instance.coroutines) for instance in instances):
            draw.choice(instances).coroutines.turn()
    return instances, tasks


def kv_of(instance: Instance, slots: torch.Tensor) -> torch.Tensor:
    """K and V of all layers at these slots."""
    return instance.pool.kv[:, :, slots]
