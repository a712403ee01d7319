"""The events of several caches as those of one, whatever happens to each of them."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sglang.srt.disaggregation.kv_events import AllBlocksCleared, BlockRemoved, BlockStored

from sglang_cdsp.controller.prefixes.hashes import PageHashes
from sglang_cdsp.controller.prefixes.namespaces import salt_of
from sglang_cdsp.controller.prefixes.pool import PoolPrefixes
from sglang_cdsp.protocol.messages import CacheChange
from sglang_cdsp.testing.kv_events import Subscriber

PAGE = 2
INSTANCES = 3
Namespace = tuple[str | None, str | None]
"""An extra key, and a salt."""

PLAIN: Namespace = (None, None)
NAMESPACES: tuple[Namespace, ...] = (PLAIN, (None, "s"), ("k", None), ("l", None), ("k", "s"))
MEDIA = ("GPU", "CPU_PINNED")


def names(tokens: Sequence[int], key: str | None = None, salt: str | None = None) -> list[int]:
    """As trees of the pool name the pages of a prompt."""
    return [*_names(tuple(tokens), salt_of(key, salt))]


@functools.cache
def _names(tokens: tuple[int, ...], salt: str | None) -> tuple[int, ...]:
    return tuple(PageHashes(tokens, PAGE, salt))


def stored(
    tokens: list[int], namespace: Namespace = PLAIN, held: int = 0, medium: str = "GPU"
) -> CacheChange:
    """A tree takes in the pages of a prompt of which it held the first ``held``."""
    pages = names(tokens, *namespace)
    return CacheChange(
        "stored",
        array("q", pages[held:]).tobytes(),
        medium,
        tokens=array("q", tokens[held * PAGE : len(pages) * PAGE]).tobytes(),
        parent=pages[held - 1] if held else None,
        salt=salt_of(*namespace),
    )


def removed(pages: list[int], medium: str = "GPU") -> CacheChange:
    return CacheChange("removed", array("q", pages).tobytes(), medium)


def pool(rename: Any = None) -> PoolPrefixes:
    return PoolPrefixes([1000] * INSTANCES, PAGE, publishes=True, rename=rename)


def begun(rename: Any = None) -> PoolPrefixes:
    """A pool whose first event was taken."""
    prefixes = pool(rename)
    assert [type(event) for event in prefixes.events()] == [AllBlocksCleared]
    return prefixes


ONE = list(range(10, 18))
OTHER = [*range(10, 14), *range(30, 36)]


def test_the_first_copy_is_stored_and_the_last_one_removed() -> None:
    prefixes = begun()
    prefixes.changed(0, [stored(ONE)])
    [event] = prefixes.events()
    assert event == BlockStored(
        block_hashes=names(ONE),
        parent_block_hash=None,
        token_ids=ONE,
        block_size=PAGE,
        lora_id=None,
        medium="GPU",
    )
    prefixes.changed(1, [stored(ONE)])
    prefixes.changed(0, [removed(names(ONE)[2:])])
    assert prefixes.events() == []
    prefixes.changed(1, [removed(names(ONE)[3:]), removed(names(ONE)[2:3])])
    assert prefixes.events() == [BlockRemoved(block_hashes=names(ONE)[:1:-1], medium="GPU")]


def test_only_new_pages_of_a_prompt_are_told_behind_the_one_before_them() -> None:
    prefixes = begun()
    prefixes.changed(0, [stored(ONE)])
    prefixes.changed(1, [stored(OTHER)])
    _, event = prefixes.events()
    assert event.block_hashes == names(OTHER)[2:]
    assert event.parent_block_hash == names(ONE)[1]
    assert event.token_ids == OTHER[4:]
    prefixes.changed(0, [removed(names(ONE)[2:])])
    prefixes.changed(2, [stored([*ONE, 1, 2], held=0)])
    _, event = prefixes.events()
    assert event.parent_block_hash == names(ONE)[1]
    assert event.token_ids == [*ONE[4:], 1, 2]


def test_a_flush_of_all_instances_is_one_event() -> None:
    prefixes = begun()
    for instance in range(INSTANCES):
        prefixes.changed(instance, [stored(ONE)])
    prefixes.events()
    for instance in range(INSTANCES):
        assert prefixes.events() == []
        prefixes.changed(instance, [CacheChange("cleared")])
    assert prefixes.events() == [AllBlocksCleared()]
    assert not prefixes.owes_events
    for instance in range(INSTANCES):
        prefixes.changed(instance, [CacheChange("cleared")])
    assert prefixes.events() == [AllBlocksCleared()]
    prefixes.changed(0, [stored(ONE)])
    assert [event.block_hashes for event in prefixes.events()] == [names(ONE)]


def test_an_instance_that_is_flushed_alone_takes_its_last_copies_with_it() -> None:
    prefixes = begun()
    prefixes.changed(0, [stored(ONE)])
    prefixes.changed(1, [stored(OTHER)])
    prefixes.events()
    prefixes.changed(0, [CacheChange("cleared")])
    assert prefixes.owes_events
    prefixes.tidy()
    assert not prefixes.owes_events
    [event] = prefixes.events()
    assert set(event.block_hashes) == set(names(ONE)[2:])


def test_a_lost_instance_takes_its_last_copies_with_it() -> None:
    prefixes = begun()
    prefixes.changed(0, [stored(ONE)])
    prefixes.changed(1, [stored(OTHER)])
    prefixes.events()
    prefixes.gone(1)
    prefixes.tidy()
    [event] = prefixes.events()
    assert set(event.block_hashes) == set(names(OTHER)[2:])
    # A flush happens without it.
    for instance in (0, 2):
        prefixes.changed(instance, [CacheChange("cleared")])
    assert prefixes.events() == [AllBlocksCleared()]


def test_what_another_instance_stores_before_it_is_struck_out_stays() -> None:
    prefixes = begun()
    prefixes.changed(0, [stored(ONE)])
    prefixes.events()
    prefixes.gone(0)
    prefixes.changed(1, [stored(ONE[:4])])
    prefixes.tidy()
    [event] = prefixes.events()
    assert set(event.block_hashes) == set(names(ONE)[2:])


def test_an_extra_key_is_told_as_sglang_tells_it() -> None:
    """It has no part in names: the namespaces of two keys are one page, while any has it."""
    prefixes = begun()
    prefixes.changed(0, [stored(ONE, ("k", None))])
    [event] = prefixes.events()
    assert (event.block_hashes, event.cache_salt) == (names(ONE), None)
    prefixes.changed(1, [stored(ONE), stored(ONE, ("l", None))])
    prefixes.changed(0, [removed(names(ONE, "k"))])
    prefixes.changed(1, [removed(names(ONE))])
    assert prefixes.events() == []
    prefixes.changed(1, [removed(names(ONE, "l"))])
    assert [event.block_hashes for event in prefixes.events()] == [names(ONE)]
    prefixes.changed(1, [stored(ONE, ("k", "s"))])
    prefixes.changed(1, [stored([*ONE, 1, 2], ("k", "s"), held=4)])
    first, second = prefixes.events()
    assert (first.block_hashes, first.cache_salt) == (names(ONE, None, "s"), "s")
    assert second.block_hashes == names([*ONE, 1, 2], None, "s")[4:]
    assert second.parent_block_hash == names(ONE, None, "s")[-1]


def test_one_page_of_two_namespaces_that_goes_at_once_is_told_once() -> None:
    for order in ((("k", None), PLAIN), (PLAIN, ("k", None))):
        prefixes = begun()
        for namespace in order:
            prefixes.changed(0, [stored(ONE, namespace)])
        prefixes.events()
        prefixes.gone(0)
        prefixes.tidy()
        [event] = prefixes.events()
        assert sorted(event.block_hashes) == sorted(names(ONE))


def test_places_count_by_themselves() -> None:
    prefixes = begun()
    prefixes.changed(0, [stored(ONE), stored(ONE, medium="CPU_PINNED")])
    prefixes.changed(1, [stored(ONE, medium="CPU_PINNED")])
    prefixes.changed(0, [removed(names(ONE)), removed(names(ONE), "CPU_PINNED")])
    events = prefixes.events()
    assert [(type(event), event.medium) for event in events] == [
        (BlockStored, "GPU"),
        (BlockStored, "CPU_PINNED"),
        (BlockRemoved, "GPU"),
    ]
    prefixes.gone(1)
    prefixes.tidy()
    assert [event.medium for event in prefixes.events()] == ["CPU_PINNED"]
    assert prefixes.snapshot()["pages_by_instance"] == [0] * INSTANCES


def test_nothing_is_kept_where_nobody_takes_it() -> None:
    prefixes = PoolPrefixes([1000] * INSTANCES, PAGE)
    prefixes.changed(0, [stored(ONE), CacheChange("cleared")])
    prefixes.gone(0)
    prefixes.tidy()
    assert prefixes.events() == []
    assert not prefixes.owes_events


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_format_may_give_names_of_its_own(namespace: Namespace) -> None:
    def rename(name: int, key: str | None, salt: str | None) -> int:
        assert (key, salt) == namespace
        return name ^ 1

    prefixes = begun(rename)
    prefixes.changed(0, [stored(ONE, namespace), stored([*ONE, 1, 2], namespace, held=4)])
    prefixes.changed(0, [removed(names([*ONE, 1, 2], *namespace))])
    first, second, last = prefixes.events()
    stock = [name ^ (namespace != PLAIN) for name in names([*ONE, 1, 2], None, namespace[1])]
    assert [*first.block_hashes, *second.block_hashes] == last.block_hashes == stock
    assert second.parent_block_hash == stock[3]


class AnyCaches(RuleBasedStateMachine):
    """Trees that store and evict, are flushed and lost; a subscriber knows what they hold."""

    @initialize(renamed=st.booleans())
    def begin(self, renamed: bool) -> None:
        self.renamed = renamed
        self.prefixes = pool(self.rename if renamed else None)
        self.subscriber = Subscriber()
        # By instance and medium, prompts that it holds from their beginning, as pages of tokens.
        self.trees: dict[tuple[int, str], set[tuple[Namespace, tuple[int, ...]]]] = {
            (i, medium): set() for i in range(INSTANCES) for medium in MEDIA
        }

    @staticmethod
    def rename(name: int, key: str | None, salt: str | None) -> int:
        return name if (key, salt) == PLAIN else hash((name, key, salt))

    def shown(self, namespace: Namespace, tokens: tuple[int, ...]) -> int:
        """The name of the last of some pages, as SGLang tells it."""
        name = names(tokens, None, namespace[1])[-1]
        return self.rename(name, *namespace) if self.renamed else name

    @rule(
        i=st.integers(0, INSTANCES - 1),
        medium=st.sampled_from((*MEDIA, "GPU", "GPU")),
        namespace=st.sampled_from(NAMESPACES),
        tokens=st.lists(st.integers(1, 2), min_size=1, max_size=5),
    )
    def store(self, i: int, medium: str, namespace: Namespace, tokens: list[int]) -> None:
        whole = [token for token in tokens for _ in range(PAGE)]
        tree, held = self.trees[i, medium], 0
        while held < len(tokens) and (namespace, tuple(whole[: (held + 1) * PAGE])) in tree:
            held += 1
        if held < len(tokens):
            self.prefixes.changed(i, [stored(whole, namespace, held, medium)])
        tree |= {(namespace, tuple(whole[: n * PAGE])) for n in range(1, len(tokens) + 1)}

    @rule(
        i=st.integers(0, INSTANCES - 1),
        medium=st.sampled_from(MEDIA),
        pick=st.integers(0, 1 << 16),
    )
    def evict(self, i: int, medium: str, pick: int) -> None:
        """A page, and all that come after it."""
        tree = self.trees[i, medium]
        if not tree:
            return
        namespace, root = sorted(tree, key=repr)[pick % len(tree)]
        gone = {
            (space, tokens)
            for space, tokens in tree
            if space == namespace and tokens[: len(root)] == root
        }
        tree -= gone
        ordered = sorted(gone, key=lambda entry: -len(entry[1]))
        pages = [names(tokens, *space)[-1] for space, tokens in ordered]
        self.prefixes.changed(i, [removed(pages, medium)])

    def empty(self, i: int) -> None:
        for medium in MEDIA:
            self.trees[i, medium].clear()

    @rule(i=st.integers(0, INSTANCES - 1))
    def flush(self, i: int) -> None:
        self.empty(i)
        self.prefixes.changed(i, [CacheChange("cleared")])

    @rule()
    def flush_all(self) -> None:
        for i in range(INSTANCES):
            self.flush(i)
        self.follow()
        assert self.subscriber.pages == {}

    @rule(i=st.integers(0, INSTANCES - 1))
    def lose(self, i: int) -> None:
        self.empty(i)
        self.prefixes.gone(i)

    @rule()
    def tidy(self) -> None:
        self.prefixes.tidy()

    def follow(self) -> None:
        self.subscriber.hear(map(msgspec.to_builtins, self.prefixes.events()))

    @invariant()
    def a_subscriber_knows_what_is_cached(self) -> None:
        self.follow()
        owes = self.prefixes.owes_events
        for medium in MEDIA:
            held = {self.shown(*entry) for i in range(INSTANCES) for entry in self.trees[i, medium]}
            told = self.subscriber.held(medium)
            assert told >= held
            assert owes or told == held

    def teardown(self) -> None:
        """All is told in the end, and nothing is remembered of what is gone."""
        for i in range(INSTANCES):
            self.lose(i)
        while self.prefixes.owes_events:
            self.prefixes.tidy()
        self.follow()
        assert not any(self.subscriber.pages.values())
        merged: Any = self.prefixes._merged
        assert len(merged._names) == 0
        assert not +merged._shared


TestAnyCaches = AnyCaches.TestCase
TestAnyCaches.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
