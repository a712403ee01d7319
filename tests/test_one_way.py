"""Which tests `--one-way` leaves out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.one_way import APART, DRAWN, Seen, left_out, seed_of

WAYS = ("forced", "planned", "turn")
FOLDERS = tuple(f"serving_{n}" for n in range(APART + 3))


@given(st.integers(0, 1 << 31), st.integers(1, 9))
def test_one_of_each_question_stays_and_all_that_nobody_else_asks(
    seed: int, questions: int
) -> None:
    asked = [Seen(f"{q}[{way}]", str(q), ways=True) for q in range(questions) for way in WAYS]
    tests = [*asked, Seen("other", "other", ways=False)]
    out = left_out(tests, seed)
    assert "other" not in out
    for question in range(questions):
        same = [seen.test for seen in asked if seen.question == str(question)]
        assert len([test for test in same if test not in out]) == 1
    assert left_out(reversed(tests), seed) == out, "the order of collection does not count"


def test_every_way_is_drawn_by_some_seed() -> None:
    tests = [Seen(way, "one", ways=True) for way in WAYS]
    kept = {way for seed in range(50) for way in {*WAYS} - left_out(tests, seed)}
    assert kept == {*WAYS}


@given(st.integers(0, 1 << 31))
def test_of_the_folders_apart_some_stay_whole(seed: int) -> None:
    tests = [
        Seen(f"{folder}:{n}", f"{folder}:{n}", ways=False, folder=folder)
        for folder in FOLDERS
        for n in range(3)
    ]
    out = left_out(tests, seed)
    whole = [f for f in FOLDERS if not any(test.startswith(f"{f}:") for test in out)]
    assert len(whole) == APART
    assert len(out) == 3 * (len(FOLDERS) - APART)
    assert left_out(reversed(tests), seed) == out


def test_every_folder_is_drawn_by_some_seed() -> None:
    tests = [Seen(folder, folder, ways=False, folder=folder) for folder in FOLDERS]
    kept = {folder for seed in range(50) for folder in {*FOLDERS} - left_out(tests, seed)}
    assert kept == {*FOLDERS}


def test_without_a_seed_one_is_drawn_and_without_the_option_none() -> None:
    assert seed_of(None) is None
    assert seed_of("7") == 7
    assert isinstance(seed_of(DRAWN), int)
