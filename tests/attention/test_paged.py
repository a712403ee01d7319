"""A member's rows read in the KV pool where they lie, with FlashInfer's interface emulated."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.layers.radix_attention import RadixAttention
from torch.utils._python_dispatch import TorchDispatchMode

from sglang_cdsp.attention import paged, paged_kernel
from sglang_cdsp.attention.backend import ShardAttention
from sglang_cdsp.attention.errors import AttentionError
from sglang_cdsp.attention.pacing import UNPACED, Pacing
from sglang_cdsp.attention.paged import PagedReader, paged_reader
from sglang_cdsp.attention.paged_kernel import PAGED_KERNELS, PagedKernel
from sglang_cdsp.attention.pool_block import PoolBlock
from sglang_cdsp.attention.ring import q_ring_attention, ring_attention
from sglang_cdsp.attention.steps import KvRing, LayerShape, QRing
from sglang_cdsp.parallel.links.lanes import Lane
from sglang_cdsp.parallel.links.types import Exchanger, Message, Waitable
from sglang_cdsp.testing.paged import Emulated
from tests.parallel.ring_cases import (
    Attention,
    RingCase,
    in_threads,
    ring_cases,
    rows_of,
    thread_lanes,
)

RANKS = 4
WAYS: dict[str, tuple[Attention, type[KvRing] | type[QRing]]] = {
    "kv": (ring_attention, KvRing),
    "q": (q_ring_attention, QRing),
}


@pytest.fixture(scope="module")
def lanes() -> Iterator[list[Lane]]:
    lanes = thread_lanes(RANKS)
    yield lanes
    for lane in lanes:
        lane.close()


@dataclass(frozen=True)
class Held:
    """What a member of a case holds in a pool: reading any other slot gives NaN."""

    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    slots: torch.Tensor
    shape: LayerShape

    @classmethod
    def of(cls, case: RingCase, me: int, dtype: torch.dtype = torch.float32) -> Held:
        q, k, v = (x.to(dtype) for x in case.tensors())
        own = rows_of(case.layout(me).pieces[me])
        held = torch.cat((torch.tensor(case.history_rows()[me], dtype=torch.int64), own))
        free = torch.randperm(2 * (case.history + case.tokens) + 1)
        slots = free[: held.numel()]
        keys, values = (x.new_full((free.numel(), *x.shape[1:]), torch.nan) for x in (k, v))
        keys[slots], values[slots] = k[held], v[held]
        shape = LayerShape(
            case.kv_heads, case.q_heads, case.head_dim, case.value_dim, q.element_size()
        )
        return cls(q[own], keys, values, slots, shape)


def run(
    case: RingCase,
    lanes: Sequence[Exchanger],
    way: str,
    kernels: Sequence[PagedKernel],
    pacing: Pacing = UNPACED,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Run a case on pools, a thread a member."""
    attention, ring_class = WAYS[way]

    def member(me: int) -> torch.Tensor:
        held, layout = Held.of(case, me, dtype), case.layout(me)
        ring = ring_class.of(layout)
        reader = paged_reader(
            kernels, layout, ring, held.slots, held.shape, dtype, case.scale, pacing
        )
        assert (reader is None) == (not kernels)
        history = layout.history_tokens[me]
        block = PoolBlock(held.keys, held.values, held.slots, history, reader=reader)
        return attention(
            held.q, block, layout, lanes[case.group[me]], scale=case.scale, ring=ring,
            pacing=pacing,
        )  # fmt: skip

    return case.assemble(in_threads(member, range(len(case.group))))


@pytest.mark.parametrize("way", WAYS)
@settings(print_blob=True, deadline=None, max_examples=60)
@given(
    case=ring_cases(RANKS),
    tile_flops=st.sampled_from([None, 1e3, 1e5]),
    emulated=st.booleans(),
)
def test_equals_attention_over_the_full_sequence(
    lanes: list[Lane], way: str, case: RingCase, tile_flops: float | None, emulated: bool
) -> None:
    kernels = (Emulated().kernel(),) if emulated else ()
    out = run(case, lanes, way, kernels, Pacing(None, tile_flops))
    torch.testing.assert_close(out.double(), case.expected(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_in_bfloat16_both_ways_to_read_agree(lanes: list[Lane], way: str) -> None:
    case = RingCase(group=(2, 0, 1), history=90, tokens=41, q_heads=3, kv_heads=1)
    by_slot = run(case, lanes, way, (Emulated().kernel(),), dtype=torch.bfloat16)
    gathered = run(case, lanes, way, (), dtype=torch.bfloat16)
    assert by_slot.dtype == torch.bfloat16
    torch.testing.assert_close(by_slot.double(), case.expected(torch.bfloat16), atol=2e-2, rtol=0)
    torch.testing.assert_close(by_slot, gathered, atol=2e-2, rtol=0)


class Pool:
    """KV of several layers by slot, as SGLang's pool is asked for it."""

    def __init__(self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.layers = layers

    def set_kv_buffer(self, layer: Any, where: Any, k: torch.Tensor, v: torch.Tensor) -> None:
        for buffer, rows in zip(self.layers[layer.layer_id], (k, v), strict=True):
            buffer[where.loc] = rows.view(-1, *buffer.shape[1:])

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.layers[layer_id][0]

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.layers[layer_id][1]


class Watched:
    """Keeps the messages that are sent."""

    def __init__(self, links: Exchanger) -> None:
        self._links = links
        self.sent: list[Message] = []

    def exchange(
        self, sends: Sequence[Message], recvs: Sequence[Message], note: int = 0
    ) -> Waitable:
        self.sent += [message for message in sends if message.tensor.numel()]
        return self._links.exchange(sends, recvs, note)


class PoolReads(TorchDispatchMode):
    """Notes what reads a pool, and where it puts what it read; kernels themselves are left out."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pool = {x.untyped_storage().data_ptr() for layer in pool.layers for x in layer}
        self._kernels = threading.local()
        self.reads: list[tuple[str, int]] = []

    @contextlib.contextmanager
    def kernel(self) -> Iterator[None]:
        self._kernels.running = True
        yield
        self._kernels.running = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = any(
            isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() in self._pool
            for x in args
        )
        if (
            read
            and isinstance(result, torch.Tensor)
            and not getattr(self._kernels, "running", False)
        ):
            where = result.untyped_storage().data_ptr()
            # A view copies nothing, and memory of its dtype and device alone holds nothing of it.
            if where not in self._pool and "new_empty" not in str(func):
                self.reads.append((str(func), where))
        return result


@dataclass
class Forward:
    """One member's forward of two layers, and what it did to its pool."""

    attention: ShardAttention
    held: Held
    links: Watched
    reads: PoolReads
    pool: Pool
    scale: float

    def layer(self, number: int) -> torch.Tensor:
        shape, rows = self.held.shape, self.held.q.shape[0]
        own = self.held.slots[self.held.slots.numel() - rows :]
        k, v = self.held.keys[own], self.held.values[own]
        layer = RadixAttention(
            shape.q_heads, shape.head_dim, self.scale, shape.kv_heads, number,
            v_head_dim=shape.value_dim,
        )  # fmt: skip
        batch: Any = SimpleNamespace(out_cache_loc=own)
        with self.reads:
            return self.attention.forward(
                self.held.q.flatten(1), k.flatten(1), v.flatten(1), layer, batch
            ).view(rows, shape.q_heads, shape.value_dim)


def forward(
    case: RingCase, me: int, links: Exchanger, kernels: Callable[[PoolReads], Sequence[PagedKernel]]
) -> Forward:
    held, layout = Held.of(case, me), case.layout(me)
    history = layout.history_tokens[me]
    layers = [(held.keys.clone(), held.values.clone()) for _ in range(2)]
    for buffers in layers:
        for buffer in buffers:
            buffer[held.slots[history:]] = torch.nan  # what the forward itself has to store
    pool, watched = Pool(layers), Watched(links)
    reads = PoolReads(pool)
    attention = ShardAttention(
        inner=SimpleNamespace(token_to_kv_pool=pool, req_to_token_pool=None),
        layout=layout,
        links=watched,
        own_slots=held.slots[history:],
        history_slots=held.slots[:history],
        rebalancer=None,
        kernels=kernels(reads),
    )
    return Forward(attention, held, watched, reads, pool, case.scale)


LONG_CHUNK = RingCase(group=(1, 0, 2), history=30, tokens=120)
SHORT_CHUNK = RingCase(group=(1, 0, 2), history=300, tokens=12)


@pytest.mark.parametrize("by_slot", [True, False])
@pytest.mark.parametrize(
    ("case", "tag"), [(LONG_CHUNK, 1), (SHORT_CHUNK, 3)], ids=["KV travels", "Q travels"]
)
def test_what_travels_is_copied_once_and_nothing_else_is_copied(
    lanes: list[Lane], case: RingCase, tag: int, by_slot: bool
) -> None:
    """Red with a second copy, and with one of history that a kernel could read."""
    emulated: dict[int, Emulated] = {}

    def member(me: int) -> tuple[Forward, torch.Tensor]:
        def kernels(reads: PoolReads) -> Sequence[PagedKernel]:
            if not by_slot:
                return ()
            emulated[me] = Emulated(around=reads.kernel)
            return (emulated[me].kernel(),)

        one = forward(case, me, lanes[case.group[me]], kernels)
        return one, torch.stack([one.layer(0), one.layer(1)], 1)

    found = in_threads(member, range(3))
    for layer in range(2):
        outs = [both[:, layer] for _, both in found]
        torch.testing.assert_close(
            case.assemble(outs).double(), case.expected(), atol=1e-5, rtol=1e-5
        )
    for one, _ in found:
        assert tag in {message.tag for message in one.links.sent}
        own_messages = {message.tensor.untyped_storage().data_ptr() for message in one.links.sent}
        into = [where for name, where in one.reads.reads]
        if tag == 1:
            # K and V of both layers, straight into what is sent.
            assert len(into) == 4, one.reads.reads
            assert set(into) <= own_messages
        else:
            assert len(into) == (0 if by_slot else 4)
    for me, kernel in emulated.items():
        layout = case.layout(me)
        guests = {layout.visible(other, me) for other in range(3) if other != me} - {()}
        calls = 1 + (len(guests) if tag == 3 else 0)
        assert len(kernel.wrappers) == 1 + calls, "planned once for both layers"


def test_forwards_that_take_turns_have_plans_of_their_own() -> None:
    """As two chunks of one instance do, whose coroutines switch at every layer."""
    kernel = Emulated()
    cases = [
        RingCase(group=(0,), history=history, tokens=tokens, seed=history)
        for history, tokens in ((40, 30), (7, 50))
    ]
    nobody: Any = SimpleNamespace(exchange=None)
    forwards = [forward(case, 0, nobody, lambda reads: (kernel.kernel(),)) for case in cases]
    for layer in range(2):
        for case, one in zip(cases, forwards, strict=True):
            torch.testing.assert_close(
                one.layer(layer).double(), case.expected(), atol=1e-5, rtol=1e-5
            )
    assert len(kernel.wrappers) == 2 * (1 + 1), "one to ask for sizes and one planned, for each"


def reader_of(case: RingCase, pacing: Pacing, kernel: PagedKernel) -> PagedReader:
    held, layout = Held.of(case, 0), case.layout(0)
    ring = KvRing.of(layout)
    reader = paged_reader(
        (kernel,), layout, ring, held.slots, held.shape, torch.float32, case.scale, pacing
    )
    assert reader is not None
    return reader


def test_nothing_is_launched_before_the_device_has_the_plans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a forward ends before, its host buffers go to other plans without harm."""
    events: list[str] = []
    monkeypatch.setattr(paged, "_passed", lambda device: lambda: events.count("polled") > 2)

    def give_way(ready: Callable[[], bool] | None) -> None:
        events.append("polled" if ready is not None else "boundary")

    case = RingCase(group=(0,), history=30, tokens=20)
    reader = reader_of(case, Pacing(give_way), Emulated().kernel())
    assert events == ["polled"] * 3
    assert len(reader.own) == 1


def test_many_plans_let_others_run_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_kernel, "_STRETCH", 4)
    calls: list[object] = []
    case = RingCase(group=(0,), history=30, tokens=200)
    reader = reader_of(case, Pacing(calls.append, 1.0), Emulated().kernel())
    assert len(reader.own) > 8
    assert len(calls) == (len(reader.own) - 1) // 4


def test_memory_is_what_the_kernel_asks_for() -> None:
    """One buffer for partial results as large as the largest call needs, and a plan's for each."""
    asked: list[tuple[int, int]] = []
    given_: list[tuple[int, int, int]] = []
    kernel = Emulated().kernel()

    def make(workspace: torch.Tensor) -> Any:
        wrapper: Any = kernel.make(workspace)

        def workspace_size(**planned: Any) -> tuple[int, int]:
            rows = int(planned["qo_indptr"][-1])
            asked.append((1000 * rows, 10_000 * rows))
            return asked[-1]

        def reset(results: torch.Tensor, plan: torch.Tensor) -> None:
            given_.append((results.data_ptr(), results.numel(), plan.numel()))

        wrapper.workspace_size, wrapper.reset_workspace_buffer = workspace_size, reset
        return wrapper

    sized = PagedKernel("sized", 1.0, kernel.usable, make)
    case = RingCase(group=(0,), history=30, tokens=100)
    reader_of(case, Pacing(None, 2e5), sized)
    assert len(asked) == len(given_) > 2
    assert len({address for address, _, _ in given_}) == 1
    slack = paged_kernel._SLACK
    assert {size for _, size, _ in given_} == {max(size for size, _ in asked) + slack}
    assert [size for _, _, size in given_] == [size + slack for _, size in asked]


def test_a_cpu_gathers() -> None:
    case = RingCase(group=(0,), history=8, tokens=4)
    held, layout = Held.of(case, 0), case.layout(0)
    reader = paged_reader(
        PAGED_KERNELS, layout, KvRing.of(layout), held.slots, held.shape,
        torch.float32, 1.0, UNPACED,
    )  # fmt: skip
    assert reader is None


def test_a_block_of_other_rows_is_refused() -> None:
    case = RingCase(group=(0,), history=8, tokens=4)
    held = Held.of(case, 0)
    for history, words in ((7, "exactly its spans"), (9, "exactly its spans")):
        block = PoolBlock(held.keys, held.values, held.slots, history)
        with pytest.raises(AttentionError, match=words):
            ring_attention(held.q, block, case.layout(0), None, scale=1.0)
    block = PoolBlock(held.keys, held.values, held.slots[1:], 7)
    with pytest.raises(AttentionError, match="tokens of history"):
        ring_attention(held.q, block, case.layout(0), None, scale=1.0)
