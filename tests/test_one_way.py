"""Which tests `--one-way` leaves out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.one_way import DRAWN, left_out, seed_of

WAYS = ("forced", "planned", "turn")


@given(st.integers(0, 1 << 31), st.integers(1, 9))
def test_one_of_each_question_stays_and_all_that_has_no_way(seed: int, questions: int) -> None:
    with_way = [(f"{q}[{way}]", way, str(q)) for q in range(questions) for way in WAYS]
    tests = [*with_way, ("other", None, "other")]
    out = left_out(tests, seed)
    assert "other" not in out
    for question in range(questions):
        stays = [test for test, _, asked in with_way if asked == str(question) and test not in out]
        assert len(stays) == 1
    assert left_out(reversed(tests), seed) == out, "the order of collection does not count"


def test_every_way_is_drawn_by_some_seed() -> None:
    tests = [(way, way, "one") for way in WAYS]
    kept = {way for seed in range(50) for way in {*WAYS} - left_out(tests, seed)}
    assert kept == {*WAYS}


def test_without_a_seed_one_is_drawn_and_without_the_option_none() -> None:
    assert seed_of(None) is None
    assert seed_of("7") == 7
    assert isinstance(seed_of(DRAWN), int)
