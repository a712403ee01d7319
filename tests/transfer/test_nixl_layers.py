"""Layers over real NIXL agents: every byte in its place when stock decode counts it complete."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_cdsp.releases import nixl_writes_notify
from sglang_cdsp.transfer.failures import TransferFailed
from tests.engine.fake_transfer import ROOM, CountingDecode
from tests.transfer.real_agents import (
    ENOUGH_S,
    HEADS,
    LAYERS,
    PAGES,
    Machine,
    RealManager,
    drained,
)

UNTOUCHED = 255


@pytest.fixture(scope="module")
def machines() -> tuple[Machine, Machine]:
    here, there = Machine("layers-prefill"), Machine("layers-decode")
    here.agent.add_remote_agent(there.agent.get_agent_metadata())
    return here, there


class Decode(CountingDecode):
    """Stock decode's bookkeeping over what its real agent hears."""

    def __init__(self, agent: Any) -> None:
        super().__init__()
        self.agent = agent

    def done(self) -> bool:
        """Whether it takes the KV as complete; never where it counts no notes."""
        if not nixl_writes_notify():
            return False
        self.update_transfer_status()
        return bool(self.check_transfer_done(ROOM))

    def wait(self) -> None:
        """Until it does."""
        deadline_s = time.monotonic() + ENOUGH_S
        while not self.done():
            if time.monotonic() > deadline_s:
                raise TimeoutError("decode never hears of it")
            time.sleep(0.0002)


def filled(here: Machine, there: Machine, seed: int) -> None:
    """Random bytes here, none of which is ``UNTOUCHED``; nothing there."""
    numbers = np.random.default_rng(seed)
    here.memory[:] = numbers.integers(0, UNTOUCHED, here.memory.size, dtype=np.uint8)
    there.memory[:] = UNTOUCHED
    there.agent.get_new_notifs()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), page=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**16))
def test_every_page_of_every_layer_arrives_before_the_word(
    machines: tuple[Machine, Machine], data: st.DataObject, page: int, seed: int
) -> None:
    """Two holders send their parts of a prompt; pages lie anywhere, layers come in any order."""
    here, there = machines
    filled(here, there, seed)
    manager = RealManager(here, there, page=page)
    count = data.draw(st.integers(1, PAGES // 2))
    start = data.draw(st.integers(0, PAGES - count))
    shuffled = list(data.draw(st.permutations(range(PAGES))))[:count]
    source = data.draw(st.sampled_from([list(range(start, start + count)), shuffled]))
    places = list(data.draw(st.permutations(range(PAGES))))[:count]
    manager.pages_at(there, places)
    cut = data.draw(st.integers(1, count))
    orders = [
        data.draw(st.permutations(range(LAYERS)))[: data.draw(st.integers(0, LAYERS))]
        for _ in range(2)
    ]
    first_to_end = data.draw(st.integers(0, 1))
    # No draw below: Hypothesis may end an example there, and its writes would land in the next.
    decode = Decode(there.agent) if nixl_writes_notify() else None
    writes = []
    for send_id, (first, last) in enumerate(((0, cut), (cut, count))):
        write = manager.open_write(
            ROOM,
            np.array(source[first:last], np.int32),
            np.arange(first, last, dtype=np.int64),
            send_id,
            last=bool(send_id),
        )
        for layer in orders[send_id]:
            write.layer_stored(layer)
        writes.append(write)
    for write in (writes[first_to_end], writes[1 - first_to_end]):
        assert decode is None or not decode.done(), "decode takes KV as complete that is not there"
        write.computed(aux_index=0 if write.last else None)
        drained(write)
        assert write.acknowledged
    if decode is not None:
        decode.wait()
    expected = np.full_like(manager.target.kv, UNTOUCHED)
    expected[:, places] = manager.source.kv[:, source]
    assert (manager.target.kv == expected).all()
    assert (manager.target.aux[1] == manager.source.aux[0]).all()


def reopened(manager: RealManager, source: list[int]) -> Any:
    """The same pages as the request's only transfer."""
    pages = np.array(source, np.int32)
    return manager.open_write(ROOM, pages, np.arange(len(source), dtype=np.int64), 0, last=True)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.data(),
    page=st.sampled_from([1, 2, 4]),
    sizes=st.sampled_from([(1, 2), (1, 4), (2, 4), (2, 1), (4, 2)]),
    seed=st.integers(0, 2**16),
)
def test_heads_go_to_the_rank_that_holds_them(
    machines: tuple[Machine, Machine],
    data: st.DataObject,
    page: int,
    sizes: tuple[int, int],
    seed: int,
) -> None:
    """Another tensor-parallel size at decode: a part of the heads, or a part of its heads."""
    here, there = machines
    filled(here, there, seed)
    mine, theirs = sizes
    rank = data.draw(st.integers(0, mine - 1))
    # A decode rank that has heads of this one.
    each = max(1, theirs // mine)
    decode_rank = rank * theirs // mine + data.draw(st.integers(0, each - 1))
    manager = RealManager(
        here,
        there,
        page=page,
        tp_size=mine,
        rank=rank,
        decode_tp_size=theirs,
        decode_rank=decode_rank,
    )
    source = list(data.draw(st.permutations(range(PAGES))))[:5]
    places = list(data.draw(st.permutations(range(PAGES))))[:5]
    manager.pages_at(there, places)
    order = data.draw(st.permutations(range(LAYERS)))
    write = reopened(manager, source)
    for layer in order:
        write.layer_stored(layer)
    write.computed(aux_index=0)
    drained(write)
    expected = np.full_like(manager.target.kv, UNTOUCHED)
    heads = range(HEADS)
    held = heads[rank * HEADS // mine : (rank + 1) * HEADS // mine]
    wanted = heads[decode_rank * HEADS // theirs : (decode_rank + 1) * HEADS // theirs]
    both = sorted(set(held) & set(wanted))
    assert both
    to = [head - wanted.start for head in both]
    from_ = [head - held.start for head in both]
    for at, place in zip(source, places, strict=True):
        expected[:, place][:, :, to] = manager.source.kv[:, at][:, :, from_]
    assert (manager.target.kv == expected).all()


def test_a_dropped_chunk_leaves_its_other_layers_alone(
    machines: tuple[Machine, Machine],
) -> None:
    here, there = machines
    filled(here, there, 1)
    manager = RealManager(here, there, page=1)
    manager.pages_at(there, [7, 3])
    write = reopened(manager, [1, 2])
    write.layer_stored(1)
    write.cancel()
    drained(write)
    assert not write.acknowledged
    touched = {
        layer for layer in range(2 * LAYERS) if (manager.target.kv[layer] != UNTOUCHED).any()
    }
    assert touched <= {1, 1 + LAYERS}
    assert there.agent.get_new_notifs() == {}
    assert (manager.target.aux == UNTOUCHED).all()


def test_an_agent_that_is_forgotten_fails_the_write(
    machines: tuple[Machine, Machine],
) -> None:
    """NIXL forgot the partner between two layers."""
    here, there = machines[0], Machine("layers-gone")
    here.agent.add_remote_agent(there.agent.get_agent_metadata())
    manager = RealManager(here, there, page=1)
    manager.pages_at(there, [7, 3])
    write = reopened(manager, [1, 2])
    write.layer_stored(0)
    here.agent.remove_remote_agent(there.name)
    write.layer_stored(1)
    write.computed(aux_index=0)
    with pytest.raises(TransferFailed, match=f"room {ROOM}"):
        drained(write)
    assert not write.acknowledged
    assert there.agent.get_new_notifs() == {}


def test_an_agent_that_was_forgotten_is_written_to_again(
    machines: tuple[Machine, Machine],
) -> None:
    """It is well, and decode names pages of the next room: NIXL would never find it again."""
    here, there = machines[0], Machine("layers-back")
    here.agent.add_remote_agent(there.agent.get_agent_metadata())
    manager = RealManager(here, there, page=1)
    filled(here, there, 3)
    here.agent.remove_remote_agent(there.name)
    manager.pages_at(there, [7, 3])
    write = reopened(manager, [1, 2])
    write.computed(aux_index=0)
    drained(write)
    assert write.acknowledged
    assert (manager.target.kv[:, [7, 3]] == manager.source.kv[:, [1, 2]]).all()
