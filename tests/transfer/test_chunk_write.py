"""Layers leave in order once they are there; what may still be written is not called over."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from sglang_cdsp.transfer.failures import TransferFailed
from tests.transfer.fake_posters import HeldPoster, InlinePoster
from tests.transfer.fake_wire import FakeWire, Handle, half_way, opened

# -- a device's layers ----------------------------------------------------------------------


def test_a_layer_is_posted_when_its_event_is_done_and_not_before() -> None:
    wire = FakeWire(on_device=True)
    write = opened(wire, InlinePoster())
    write.layer_stored(0)
    assert not write.poll()
    assert wire.layers == [], "the device has not stored it"
    wire.events[0].done = True
    assert not write.poll()
    assert wire.layers == [0]


def test_layers_whose_events_come_together_leave_in_order() -> None:
    wire = FakeWire(on_device=True)
    write = opened(wire, InlinePoster())
    for layer in range(3):
        write.layer_stored(layer)
    wire.events[2].done = True
    write.poll()
    assert wire.layers == [], "the first layer's event is not done"
    for event in wire.events:
        event.done = True
    write.computed(aux_index=None)
    assert wire.layers == [0, 1, 2]


def test_the_last_layers_event_is_waited_for_after_the_chunk() -> None:
    wire = FakeWire(on_device=True)
    write = opened(wire, InlinePoster(), last=True)
    for layer in range(3):
        write.layer_stored(layer)
    write.computed(aux_index=9)
    assert not write.poll()
    assert wire.posted == []
    for event in wire.events:
        event.done = True
    assert not write.poll()
    assert wire.layers == [0, 1, 2, None]
    wire.end_all()
    assert write.poll()
    assert write.acknowledged


def test_a_broken_device_fails_the_write_and_posts_nothing() -> None:
    wire = FakeWire(on_device=True)
    write = opened(wire, InlinePoster())
    write.layer_stored(0)
    wire.events[0].done = None
    with pytest.raises(TransferFailed, match="illegal memory access") as failure:
        write.poll()
    assert not failure.value.uncertain
    assert wire.posted == []


# -- what the engine may say, and when ------------------------------------------------------


def test_a_layer_is_told_once_and_must_exist() -> None:
    write = opened(FakeWire(), InlinePoster())
    write.layer_stored(1)
    for layer in (1, 3):
        with pytest.raises(ValueError, match=f"layer {layer}"):
            write.layer_stored(layer)


@pytest.mark.parametrize("last", [False, True])
def test_the_metadata_belongs_to_the_last_transfer(last: bool) -> None:
    write = opened(FakeWire(), InlinePoster(), last=last)
    with pytest.raises(ValueError, match="metadata"):
        write.computed(aux_index=None if last else 9)


def test_layers_that_were_not_told_leave_at_the_end() -> None:
    wire = FakeWire()
    write = opened(wire, InlinePoster())
    write.layer_stored(1)
    write.computed(aux_index=None)
    assert wire.layers == [1, 0, 2]


def test_whole_chunks_to_compare_with() -> None:
    wire = FakeWire()
    write = opened(wire, InlinePoster(), at_once=True)
    for layer in range(3):
        write.layer_stored(layer)
    assert wire.posted == []
    write.computed(aux_index=None)
    assert wire.layers == [0, 1, 2]


def test_a_drop_in_the_middle_of_a_post_stops_it_there() -> None:
    """The posting thread is inside a post of many when the loop drops the chunk."""
    wire, poster = FakeWire(), HeldPoster()
    write = opened(wire, poster, parts=3)
    write.layer_stored(0)
    seen: list[bool] = []

    def dropped_after_the_first() -> None:
        if wire.posted:
            write.cancel()
            seen.append(write.poll())

    wire.refuse = dropped_after_the_first
    poster.run()
    assert len(wire.posted) == 2, "the post that was under way, and none after it"
    assert seen == [False], "a post is under way"
    assert not write.poll()
    wire.end_all()
    assert write.poll()
    assert wire.words == []
    assert not write.acknowledged


def test_a_drop_before_the_thread_came_to_it_posts_nothing() -> None:
    wire, poster = FakeWire(), HeldPoster()
    write = opened(wire, poster)
    write.layer_stored(0)
    write.cancel()
    assert not write.poll(), "the thread may be starting it"
    poster.run()
    assert wire.posted == []
    assert write.poll()


def test_a_failure_in_the_middle_is_told_before_the_chunk_ends() -> None:
    wire = FakeWire()
    write = opened(wire, InlinePoster())
    write.layer_stored(0)
    wire.refuse = half_way
    write.layer_stored(1)
    assert not write.poll(), "the first layer is under way"
    wire.end_all()
    with pytest.raises(TransferFailed, match="rejected") as failure:
        write.poll()
    assert failure.value.uncertain
    wire.refuse = lambda: None
    write.layer_stored(2)
    write.computed(aux_index=None)
    assert write.poll()
    assert wire.layers == [0], "nothing follows a failure"
    assert wire.words == []


# -- any order of events --------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """A write whose layers, events, posts, failures and drop come in any order."""

    @initialize(
        layers=st.permutations(range(4)),
        parts=st.integers(0, 3),
        agents=st.integers(1, 2),
        last=st.booleans(),
        on_device=st.booleans(),
    )
    def start(
        self, layers: list[int], parts: int, agents: int, last: bool, on_device: bool
    ) -> None:
        self.wire, self.poster = FakeWire(on_device=on_device), HeldPoster()
        self.order, self.told, self.parts, self.agents = list(layers), 0, parts, agents
        self.last = last
        self.write = opened(self.wire, self.poster, layers=4, parts=parts, agents=agents, last=last)
        self.computed = self.cancelled = False
        self.over = self.failed = False
        self.broke = self.half = False

    @precondition(lambda self: not self.computed and self.told < 4)
    @rule()
    def a_layer_is_stored(self) -> None:
        self.write.layer_stored(self.order[self.told])
        self.told += 1

    @precondition(lambda self: not self.computed and not self.cancelled)
    @rule()
    def the_chunk_is_computed(self) -> None:
        self.write.computed(aux_index=9 if self.last else None)
        self.computed = True

    @rule()
    def the_device_gets_on(self) -> None:
        for event in self.wire.events:
            if not event.done:
                event.done = True
                return

    @precondition(lambda self: self.poster.jobs)
    @rule(refusal=st.sampled_from([None, None, None, "none of it", "half of it"]))
    def the_thread_posts(self, refusal: str | None) -> None:
        if refusal:
            failure = half_way() if refusal == "half of it" else RuntimeError("no such memory")
            self.wire.refuse = lambda: failure
        before = len(self.wire.log)
        self.poster.jobs.pop(0)()
        if any(kind == "refused" for kind, _ in self.wire.log[before:]):
            self.broke, self.half = True, self.half or refusal == "half of it"
        self.wire.refuse = lambda: None

    @precondition(lambda self: any(handle.state is None for handle in self.wire.posted))
    @rule(data=st.data(), state=st.sampled_from(["", "", "", "ERR"]))
    def a_post_ends(self, data: st.DataObject, state: str) -> None:
        flying = [handle for handle in self.wire.posted if handle.state is None]
        handle: Handle = data.draw(st.sampled_from(flying))
        handle.state = state

    @precondition(lambda self: not self.cancelled)
    @rule()
    def the_chunk_is_dropped(self) -> None:
        self.write.cancel()
        self.cancelled = True

    @rule()
    def the_loop_asks(self) -> None:
        flying = [handle for handle in self.wire.posted if handle.state is None]
        busy = bool(self.poster.jobs)
        failure: TransferFailed | None = None
        try:
            ended = self.write.poll()
        except TransferFailed as error:
            failure, ended, self.failed = error, True, True
        if failure is not None:
            lost = any(handle.state for handle in self.wire.posted)
            assert self.broke or lost
            assert failure.uncertain is (self.half or lost)
        self.over = ended
        if ended:
            assert not flying, "something may still be written"
            assert not busy, "something may still be posted"
            assert all(handle.forgotten for handle in self.wire.posted)
            assert self.computed or self.cancelled or self.failed

    @invariant()
    def nothing_follows_the_end(self) -> None:
        if getattr(self, "over", False):
            assert not self.poster.jobs
            assert all(handle.state is not None for handle in self.wire.posted)

    @invariant()
    def decode_hears_of_it_once_all_is_there(self) -> None:
        if not hasattr(self, "wire"):
            return
        if self.wire.words:
            assert self.wire.words == [f"agent{n}" for n in range(self.agents)] * bool(self.parts)
            posted = Counter(self.wire.layers)
            each = self.parts * self.agents
            assert all(posted[layer] == each for layer in range(4))
            assert all(handle.state == "" for handle in self.wire.posted)
            assert self.computed
        if self.write.acknowledged:
            assert self.computed
            assert self.wire.layers.count(None) == self.agents * self.last
            assert not self.failed

    @invariant()
    def layers_are_posted_in_order_and_after_their_events(self) -> None:
        if not hasattr(self, "wire"):
            return
        layers = list(dict.fromkeys(layer for layer in self.wire.layers if layer is not None))
        rest = sorted(set(range(4)) - set(self.order[: self.told]))
        assert layers == [*self.order[: self.told], *rest][: len(layers)]
        if self.wire.on_device:
            done = sum(bool(event.done) for event in self.wire.events)
            assert len(layers) <= done

    def teardown(self) -> None:
        """Left to itself, every write ends, and well unless something failed."""
        if not hasattr(self, "wire"):
            return
        if not (self.computed or self.cancelled):
            self.the_chunk_is_computed()
        for _ in range(12):
            self.the_device_gets_on()
        for _ in range(2):
            self.the_loop_asks()
            self.poster.run()
        self.wire.end_all()
        self.the_loop_asks()
        assert self.over
        lost = any(handle.state for handle in self.wire.posted)
        if not (self.cancelled or self.broke or lost):
            assert self.write.acknowledged


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@given(st.integers(1, 4), st.booleans())
def test_without_pages_only_the_metadata_goes(agents: int, on_device: bool) -> None:
    wire = FakeWire(on_device=on_device)
    write = opened(wire, InlinePoster(), parts=0, agents=agents, last=True)
    for layer in range(3):
        write.layer_stored(layer)
    write.computed(aux_index=9)
    assert wire.layers == [None] * agents
    wire.end_all()
    assert write.poll()
    assert wire.words == []
    assert wire.events == []
