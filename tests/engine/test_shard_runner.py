"""Any plans, any switching: what the model gives alone. Layouts, slots, moves, links, coroutines.

All instances run in one thread, each with its coroutines and links. They share one process's
forward context, as two suspended forwards of one instance do.
"""

from __future__ import annotations

import random
import time
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.model_executor.forward_context import has_forward_context

from sglang_cdsp.attention.backend import ShardAttention
from sglang_cdsp.engine import shard_runner
from sglang_cdsp.engine.device import PIECES_AHEAD
from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.parallel.chunk_layout import plan_layout
from sglang_cdsp.protocol.messages import GoOrder
from sglang_cdsp.testing.paged import Emulated
from tests.engine.fake_device import FakeDevice
from tests.engine.family_models import LATENT, WINDOWS, Kind
from tests.engine.one_thread import (
    INSTANCES,
    LAYERS,
    Instance,
    alone,
    pool_of,
    task_on,
)
from tests.engine.plans import PAGE_SIZES, Chunks, plans
from tests.planner.drawn_plans import drawn_rest


def change_rest(
    instances: list[Instance],
    tasks: list[ChunkTask],
    chunks: Chunks,
    ran: int,
    page: int,
    draw: random.Random,
) -> Chunks:
    """Another drawn plan for what follows the chunks that ran; members may have got ready."""
    for me in chunks[ran][1]:
        if draw.random() < 0.5:
            instances[me].get_ready(tasks[me], ran)
    placed = tuple((n, tuple(group)) for n, group in chunks)
    rest = drawn_rest(placed, ran, page, len(instances), draw)
    changed = [*chunks[:ran], *((n, list(group)) for n, group in rest)]
    layouts = plan_layout(changed, page)
    for me, task in enumerate(tasks):
        if me in changed[-1][1]:
            task.take_rest(layouts, ran, task.revision + 1, me)
        else:
            task.slot_table.clear()
            task.layouts, task.prepared = layouts, None
    return changed


def run_plans(
    plans: list[Chunks],
    page: int,
    seed: int,
    *,
    shared: bool = False,
    changes: int = 0,
    kind: Kind | None = None,
) -> None:
    """Run all plans at once, chunk starts and switches in a drawn order; check every token.

    Up to so many ``changes`` of rests happen between two chunks.
    """
    draw = random.Random(seed)
    instances = pool_of(page, seed, shared=shared, kind=kind)
    tasks = [[task_on(i, seq, chunks, page) for i in instances] for seq, chunks in enumerate(plans)]
    found: list[dict[int, torch.Tensor]] = [{} for _ in plans]
    started = [0] * len(plans)
    serial = 0
    while any(len(i.coroutines) for i in instances) or any(
        n < len(p) for n, p in zip(started, plans, strict=True)
    ):
        seq = draw.randrange(len(plans))
        idle = all(task.running is None for task in tasks[seq])
        between = idle and 0 < started[seq] < len(plans[seq])
        if changes and between and draw.random() < 0.3:
            changes -= 1
            plans[seq] = change_rest(instances, tasks[seq], plans[seq], started[seq], page, draw)
        if idle and started[seq] < len(plans[seq]) and draw.random() < 0.3:
            serial += 1
            chunk = started[seq]
            order = GoOrder(seq=seq, chunk=chunk, lane=seq, serial=serial)
            for member in plans[seq][chunk][1]:
                instances[member].begin(tasks[seq][member], order, found[seq])
            started[seq] += 1
        draw.choice(instances).coroutines.turn()
        assert not has_forward_context(), "the loop's own forwards must not find a chunk's"
    for seq, chunks in enumerate(plans):
        expected = (kind.alone if kind else alone)(tasks[seq][0].tokens)
        assert sorted(found[seq]) == list(range(len(expected)))
        together = torch.stack([found[seq][position] for position in range(len(expected))])
        torch.testing.assert_close(together.double(), expected, atol=1e-4, rtol=1e-4)
        assert len(instances[chunks[0][1][0]].layers) >= LAYERS, "it is seen to come on"
    for instance in instances:
        assert instance.stopped == []
        for row in tasks:
            row[instance.number].slot_table.clear()
        assert instance.allocator.taken == set()


@settings(max_examples=40, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES, st.integers(0, 2**32))
def test_any_plans_at_once_give_what_the_model_gives_alone(
    data: st.DataObject, page: int, seed: int
) -> None:
    at_once = data.draw(
        st.lists(plans(page, instances=INSTANCES, longest=6), min_size=1, max_size=3)
    )
    run_plans(at_once, page, seed)


@settings(max_examples=40, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES, st.integers(0, 2**32))
def test_rests_that_change_give_what_the_model_gives_alone(
    data: st.DataObject, page: int, seed: int
) -> None:
    at_once = data.draw(
        st.lists(plans(page, instances=INSTANCES, longest=6), min_size=1, max_size=3)
    )
    run_plans(at_once, page, seed, changes=6)


@pytest.mark.parametrize("kind", [WINDOWS, LATENT], ids=["windows and sinks", "latent"])
@settings(max_examples=30, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES, st.integers(0, 2**32))
def test_so_they_do_in_every_family(kind: Kind, data: st.DataObject, page: int, seed: int) -> None:
    at_once = data.draw(
        st.lists(plans(page, instances=INSTANCES, longest=6), min_size=1, max_size=3)
    )
    run_plans(at_once, page, seed, changes=3, kind=kind)


@settings(max_examples=25, deadline=None, print_blob=True)
@given(st.data(), PAGE_SIZES, st.integers(0, 2**32))
def test_so_they_do_where_kernels_read_the_pool(data: st.DataObject, page: int, seed: int) -> None:
    """FlashInfer's paged prefill, emulated: slots, plans and layers of many forwards in turn."""
    kernel = Emulated()
    at_once = data.draw(
        st.lists(plans(page, instances=INSTANCES, longest=6), min_size=1, max_size=3)
    )
    with pytest.MonkeyPatch.context() as patch:
        reading = partial(ShardAttention, kernels=(kernel.kernel(),))
        patch.setattr(shard_runner, "ShardAttention", reading)
        run_plans(at_once, page, seed)
    assert kernel.wrappers


def test_forwards_that_share_a_static_buffer_corrupt_each_other() -> None:
    """What SGLang's eager runner would do: the test above sees it."""
    two: list[Chunks] = [[(40, [0, 1])], [(56, [1, 0])]]
    run_plans(two, 1, seed=3)
    with pytest.raises(AssertionError, match="not close"):
        run_plans(two, 1, seed=3, shared=True)


def test_a_stopped_chunk_leaves_its_lane_to_the_next_one() -> None:
    """One member never runs, so the other waits inside; stopped, the lane serves another chunk."""
    instances = pool_of(1, seed=0)
    tasks = [task_on(i, 0, [(24, [0, 1])], 1) for i in instances]
    for me in (0, 1):
        instances[me].begin(tasks[me], GoOrder(seq=0, chunk=0, lane=0, serial=1), {})
    for _ in range(50):
        instances[0].coroutines.turn()
    for me in (0, 1):
        running = tasks[me].running
        assert running is not None
        instances[me].coroutines.stop(running, "nobody wants it")
        assert instances[me].stopped == ["nobody wants it"]
        instances[me].stopped.clear()
    found: dict[int, torch.Tensor] = {}
    again = [task_on(i, 0, [(24, [0, 1])], 1) for i in instances]
    for me in (0, 1):
        instances[me].begin(again[me], GoOrder(seq=0, chunk=0, lane=0, serial=2), found)
    while any(len(i.coroutines) for i in instances):
        for instance in instances:
            instance.coroutines.turn()
    together = torch.stack([found[position] for position in range(24)])
    torch.testing.assert_close(together.double(), alone(again[0].tokens), atol=1e-4, rtol=1e-4)


def test_a_device_is_never_far_behind_and_says_how_long_a_chunk_took() -> None:
    """Two layers of a ring of two, with tiles. Each event ends a piece, which takes 1,000 s."""
    instances = pool_of(1, seed=0)[:2]
    devices = [FakeDevice(by_events=True) for _ in instances]
    for instance, device in zip(instances, devices, strict=True):
        instance.runner._events = device
    before_s = time.monotonic()
    for instance in instances:
        task = task_on(instance, 0, [(48, [0, 1])], 1)
        instance.begin(task, GoOrder(seq=0, chunk=0, lane=0, serial=1), {})
    while any(len(i.coroutines) for i in instances):
        for instance, device in zip(instances, devices, strict=True):
            instance.coroutines.turn()
            device.run(1, ms=1e6)
    after_s = time.monotonic()
    for instance, device in zip(instances, devices, strict=True):
        assert device.most <= PIECES_AHEAD
        # The first event ends what was launched before the chunk, the last one ends the chunk.
        took_s = 1000.0 * (device.ran - 1)
        assert device.ran >= 2 + LAYERS * 2, "layers and ring steps are pieces"
        [done] = instance.done
        assert done.start_s is not None
        assert before_s - took_s <= done.start_s <= after_s - took_s
