"""The prefix index against a model that keeps, for each instance, the set of its pages."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sglang_cdsp.planner.prefixes import index as index_module
from sglang_cdsp.planner.prefixes.index import MOST_LENGTHS, HeldPages, PrefixIndex

INSTANCES = 5
ROOM = 400


class Counted(Sequence[int]):
    """A prompt's pages, and how far they were asked for."""

    def __init__(self, pages: Sequence[int]) -> None:
        self._pages = pages
        self.reached = 0

    def __len__(self) -> int:
        return len(self._pages)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        self.reached = max(self.reached, place + 1)
        return self._pages[place]


def prompt(name: int, count: int) -> list[int]:
    """The pages of a prompt: prompts of one name are prefixes of each other."""
    return [name * 100_000 + place for place in range(count)]


def held_by(prefixes: dict[int, int], name: int, most: int) -> tuple[HeldPages, ...]:
    """What a lookup must find, from the number of pages of `name` that each instance holds."""
    lengths: dict[int, list[int]] = {}
    for instance, count in prefixes.items():
        if min(count, most):
            lengths.setdefault(min(count, most), []).append(instance)
    found = [HeldPages(n, tuple(sorted(lengths[n]))) for n in sorted(lengths, reverse=True)]
    return tuple(found[:MOST_LENGTHS])


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 130), st.integers(0, 900)), st.integers(0, 900))
def test_a_lookup_tells_who_holds_how_much(prefixes: dict[int, int], asked: int) -> None:
    index = PrefixIndex([1000] * 131)
    for instance, count in prefixes.items():
        index.stored(instance, prompt(1, count))
    assert index.lookup(prompt(1, asked)) == held_by(prefixes, 1, asked)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 20_000))
def test_pages_far_beyond_what_anybody_holds_are_not_asked_for(held: int, asked: int) -> None:
    index = PrefixIndex([1000, 1000])
    index.stored(0, prompt(1, held))
    pages = Counted(prompt(1, asked))
    index.lookup(pages)
    # The reach that somebody holds, and the one after it.
    assert pages.reached <= max(index_module.GALLOP, 4 * held)
    if not held:
        assert pages.reached == 1


class AnyEvents(RuleBasedStateMachine):
    """Trees that store and evict, are emptied and struck out, with lookups in between."""

    @initialize()
    def begin(self) -> None:
        self.index = PrefixIndex([ROOM] * INSTANCES)
        self.trees: list[dict[int, int]] = [{} for _ in range(INSTANCES)]
        self.known: set[int] = set()

    @rule(i=st.integers(0, INSTANCES - 1), name=st.integers(0, 3), count=st.integers(1, 100))
    def store(self, i: int, name: int, count: int) -> None:
        self.trees[i][name] = max(self.trees[i].get(name, 0), count)
        new = self.index.stored(i, prompt(name, count))
        assert set(new) == {*prompt(name, count)} - self.known
        self.known.update(new)

    @rule(i=st.integers(0, INSTANCES - 1), name=st.integers(0, 3), left=st.integers(0, 99))
    def evict(self, i: int, name: int, left: int) -> None:
        had = self.trees[i].get(name, 0)
        self.forget(self.index.removed(i, prompt(name, had)[left:][::-1]))
        self.trees[i][name] = min(had, left)

    @rule(i=st.integers(0, INSTANCES - 1))
    def empty(self, i: int) -> None:
        self.trees[i] = {}
        self.index.emptied(i)

    @rule()
    def scrub(self) -> None:
        self.forget(self.index.scrub())

    @rule()
    def forget_all(self) -> None:
        self.trees = [{} for _ in range(INSTANCES)]
        self.known = set()
        self.index.forget()
        assert not self.index.stale

    def forget(self, gone: list[int]) -> None:
        """What is forgotten was known."""
        assert self.known.issuperset(gone)
        self.known.difference_update(gone)

    @rule(i=st.integers(0, INSTANCES - 1), name=st.integers(0, 3))
    def repeat(self, i: int, name: int) -> None:
        """Events that say what is known already change nothing."""
        had = self.trees[i].get(name, 0)
        self.index.stored(i, prompt(name, had))
        self.index.removed(i, prompt(name + 50, 3))

    @rule(name=st.integers(0, 3), asked=st.integers(0, 120))
    def look(self, name: int, asked: int) -> None:
        prefixes = {i: tree.get(name, 0) for i, tree in enumerate(self.trees)}
        assert self.index.lookup(prompt(name, asked)) == held_by(prefixes, name, asked)

    @invariant()
    def counts(self) -> None:
        held: set[int] = set()
        for i, tree in enumerate(self.trees):
            assert self.index.count(i) == sum(tree.values())
            held.update(page for name, count in tree.items() for page in prompt(name, count))
        assert self.index.holds_any is bool(held)
        assert len(self.index) == len(self.known)
        assert self.index.stale or self.known == held


TestAnyEvents = AnyEvents.TestCase
TestAnyEvents.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_emptied_instances_held_leaves_no_memory_behind() -> None:
    index = PrefixIndex([50_000] * 2)
    for turn in range(5):
        index.stored(0, prompt(turn, 20_000))
        index.stored(1, prompt(turn, 10))
        index.emptied(0)
        while index.stale:
            index.scrub()
        assert len(index) == 10 * (turn + 1)
    index.emptied(1)
    while index.stale:
        index.scrub()
    assert len(index) == 0
    index.stored(1, prompt(9, 3))
    assert index.lookup(prompt(9, 5)) == (HeldPages(3, (1,)),)


def test_an_instance_that_seems_to_hold_more_than_it_can_is_forgotten() -> None:
    index = PrefixIndex([100, 100])
    index.stored(0, prompt(1, 80))
    index.stored(1, prompt(1, 80))
    index.stored(0, prompt(2, 80))
    assert index.lost_events == 1
    assert index.count(0) == 0
    assert index.lookup(prompt(1, 80)) == (HeldPages(80, (1,)),)
    index.stored(0, prompt(2, 80))
    assert index.lookup(prompt(2, 90)) == (HeldPages(80, (0,)),)


def test_no_more_lengths_are_told_than_a_planner_can_use() -> None:
    index = PrefixIndex([1000] * 50)
    for instance in range(50):
        index.stored(instance, prompt(1, 10 * instance + 10))
    found = index.lookup(prompt(1, 1000))
    assert [held.pages for held in found] == [500, 490, 480, 470]
