"""Names of pages against SGLang's own trees, and namespaces that never share one."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import given

from sglang_cdsp.controller.prefixes.hashes import AT_ONCE, PageHashes
from sglang_cdsp.controller.prefixes.namespaces import MARK, salt_of

tokens = st.lists(st.integers(0, 200_000), max_size=300)
texts = st.one_of(st.none(), st.text(max_size=5), st.text(max_size=5).map(MARK.__add__))


@given(tokens, st.integers(1, 40), st.integers(0, 300))
def test_equal_prefixes_have_equal_names_and_others_do_not(
    ids: list[int], page: int, cut: int
) -> None:
    whole, other = PageHashes(ids, page), PageHashes([*ids[:cut], *[7] * 100], page)
    assert len(whole) == len(ids) // page
    for place in range(min(len(whole), len(other))):
        stop = (place + 1) * page
        same = ids[:stop] == [*ids[:cut], *[7] * 100][:stop]
        assert (whole[place] == other[place]) == same


@given(tokens, st.integers(1, 9), st.permutations(range(40)))
def test_the_order_of_asking_does_not_matter(ids: list[int], page: int, order: list[int]) -> None:
    eager = list(PageHashes(ids, page))
    lazy = PageHashes(ids, page)
    for place in order:
        if place < len(lazy):
            assert lazy[place] == eager[place]
    assert list(lazy[:]) == eager


def test_nothing_is_hashed_that_nobody_asks_for() -> None:
    pages = PageHashes(range(100_000), 1)
    assert pages.hashed == 0
    pages[0]
    assert pages.hashed == 1 + AT_ONCE
    pages[499]
    assert pages.hashed == 500 + AT_ONCE


@given(st.lists(st.tuples(texts, texts), min_size=2, max_size=2))
def test_two_namespaces_never_have_one_salt(names: list[tuple[str | None, str | None]]) -> None:
    one, other = [(key or None, salt or None) for key, salt in names]
    assert (salt_of(*one) == salt_of(*other)) == (one == other)


def test_a_salt_alone_stays_as_it_is() -> None:
    assert salt_of(None, None) is None
    assert salt_of("", "") is None
    assert salt_of(None, "tenant") == "tenant"
    assert salt_of("tenant", None) != "tenant"


def test_pages_of_two_salts_have_no_name_in_common() -> None:
    ids = list(range(50))
    names = [PageHashes(ids, 5, salt) for salt in (None, "a", "b", salt_of("a", None))]
    every = list(itertools.chain.from_iterable(names))
    assert len(set(every)) == len(every) == 40


def test_a_salt_that_is_no_utf8_text_is_hashed_all_the_same() -> None:
    assert len(set(PageHashes([1, 2], 1, "\ud800"))) == 2


@given(tokens, st.integers(1, 9), st.integers(0, 300))
def test_pages_in_common_are_those_of_equal_tokens(ids: list[int], page: int, cut: int) -> None:
    other = [*ids[:cut], *[7] * 50]
    same = next((n for n, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), None)
    length = min(len(ids), len(other)) if same is None else same
    one = PageHashes(ids, page)
    assert one.in_common(PageHashes(other, page)) == length // page
    assert one.in_common(PageHashes(other, page, "salt")) == 0
    assert one.hashed == 0
