"""Any plan on several instances gives what the model gives alone: layouts, slots, moves, links."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sglang.srt.layers.radix_attention import RadixAttention

from sglang_cdsp.attention.partial import reference_attention
from sglang_cdsp.engine import forward
from sglang_cdsp.engine.agreement import Agreement
from sglang_cdsp.engine.shard_runner import ChunkFailedError, ShardRunner
from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.parallel.chunk_layout import plan_layout
from sglang_cdsp.parallel.mesh import Mesh
from tests.engine.fake_kv import StrictAllocator
from tests.engine.fake_stock import FakeScheduler
from tests.engine.plans import PAGE_SIZES, plans
from tests.parallel.ring_cases import in_threads, thread_meshes

INSTANCES, LAYERS = 3, 2
Q_HEADS, KV_HEADS, DIM = 4, 2, 8
LONGEST = 600
HERE = threading.local()


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
    hidden = (EMBEDDING[tokens] + PLACES[: tokens.numel()]).double()
    for layer in range(LAYERS):
        heads = (x.view(-1, x.shape[1] // DIM, DIM) for x in project(hidden, layer))
        out, _ = reference_attention(*heads, causal=True, scale=DIM**-0.5)
        hidden = torch.tanh(hidden + out.flatten(1))
    return hidden


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
    """A model of attention alone, and SGLang's runner of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            RadixAttention(Q_HEADS, DIM, DIM**-0.5, KV_HEADS, layer_id=layer)
            for layer in range(LAYERS)
        )

    def execute(self, inputs: Any, /) -> Any:
        hidden = EMBEDDING[inputs.input_ids] + PLACES[inputs.positions]
        for number, layer in enumerate(self.layers):
            q, k, v = project(hidden, number)
            out = HERE.attention.forward(q, k, v, layer, inputs)
            hidden = torch.tanh(hidden + out)
        HERE.hidden = hidden
        return SimpleNamespace()


class Instance:
    """One instance of one rank, with its slots, KV and runner."""

    def __init__(self, number: int, page: int, mesh: Mesh) -> None:
        self.number = number
        self.allocator = StrictAllocator(LONGEST * 2 // page, page)
        self.pool = Pool(LONGEST * 2 + 2 * page)
        model = Model()
        model_runner = SimpleNamespace(
            model=model,
            device="cpu",
            dtype=torch.float32,
            eager_runner=model,
            token_to_kv_pool=self.pool,
            attn_backend=SimpleNamespace(token_to_kv_pool=self.pool, req_to_token_pool=None),
        )
        scheduler = FakeScheduler(tp_worker=SimpleNamespace(model_runner=model_runner))
        self.layers: list[None] = []
        self.runner = ShardRunner(
            scheduler,
            lambda epoch: mesh,
            number,
            Agreement(None, 1),
            lambda: self.layers.append(None),
        )

    def run(self, task: ChunkTask, chunk: int) -> dict[int, torch.Tensor]:
        """Runs a chunk as ``ChunkWork`` does; hidden states by prompt position."""
        layout = task.layouts[chunk]
        incoming = [move.span for move in layout.moves if move.dst == self.number]
        task.slot_table.take([*incoming, *layout.shard(self.number)])
        before = len(self.layers)
        self.runner.run(task, chunk)
        assert len(self.layers) > before, "whoever watches this rank sees it come on"
        task.slot_table.drop(move.span for move in layout.moves if move.src == self.number)
        spans = layout.shard(self.number)
        positions = [p for span in spans for p in range(span.start, span.stop)]
        return dict(zip(positions, HERE.hidden, strict=False))


@contextmanager
def published(context: Any) -> Iterator[None]:
    """SGLang's forward context, one a thread instead of one a process."""
    HERE.attention = context.attn_backend
    yield


@pytest.fixture(scope="module")
def meshes() -> Iterator[list[Mesh]]:
    meshes = thread_meshes(INSTANCES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "forward_context", published)
        yield meshes
    for mesh in meshes:
        mesh.close()


def task_on(instance: Instance, chunks: list[tuple[int, list[int]]], page: int) -> ChunkTask:
    length = sum(tokens for tokens, _ in chunks)
    return ChunkTask(
        seq=0,
        rid="r",
        room=None,
        probe=True,  # nothing is sampled
        layouts=plan_layout(chunks, page),
        tokens=(torch.arange(length) * 7) % LONGEST,
        slot_table=SlotTable(instance.allocator, page),
        next_chunk=0,
    )


@settings(
    max_examples=25,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data(), PAGE_SIZES)
def test_any_plan_gives_what_the_model_gives_alone(
    meshes: list[Mesh], data: st.DataObject, page: int
) -> None:
    chunks = data.draw(plans(page, instances=INSTANCES, longest=8))
    instances = [Instance(number, page, mesh) for number, mesh in enumerate(meshes)]
    tasks = [task_on(instance, chunks, page) for instance in instances]
    found: dict[int, torch.Tensor] = {}
    for chunk, (_, group) in enumerate(chunks):

        def member(index: int) -> dict[int, torch.Tensor]:
            number = group[index]  # noqa: B023  # used up at once
            return instances[number].run(tasks[number], chunk)  # noqa: B023

        for part in in_threads(member, range(len(group))):
            found.update(part)
    expected = alone(tasks[0].tokens)
    assert sorted(found) == list(range(len(expected)))
    together = torch.stack([found[position] for position in range(len(expected))])
    torch.testing.assert_close(together.double(), expected, atol=1e-4, rtol=1e-4)
    for task, instance in zip(tasks, instances, strict=True):
        task.slot_table.clear()
        assert instance.allocator.taken == set()


def test_what_is_wrong_before_a_chunk_fails_it_after_the_forward(meshes: list[Mesh]) -> None:
    """Tensor-parallel partners are inside the model: this rank goes through the motions."""
    instance = Instance(0, 1, meshes[0])
    task = task_on(instance, [(5, [0])], 1)
    task.slot_table.take(task.layouts[0].shard(0))
    HERE.hidden = None
    with pytest.raises(ChunkFailedError, match="decode is gone"):
        instance.runner.run(task, 0, "decode is gone")
    assert HERE.hidden is not None, "the model ran to its end"
