"""What the commands read from their flags: any text is a value or one line."""

import argparse
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.cli.parser import (
    MOST,
    OneLineParser,
    improvement_rates,
    integer,
    integers,
    number,
    numbers,
    policies,
    policy,
    positive_integers,
    positive_numbers,
)
from sglang_cdsp.planner.policies.registry import find

READERS: dict[str, Callable[[str], object]] = {
    "integer": integer(1),
    "any integer": integer(),
    "number": number(0.0, 10.0),
    "numbers": numbers,
    "integers": integers,
    "positive integers": positive_integers,
    "positive numbers": positive_numbers,
    "improvement rates": improvement_rates,
    "policies": policies,
    "policy": policy,
}
NEARLY = st.text("0123456789.,*-+eE naif:_x\n²١", max_size=40)
ANY = st.one_of(st.text(max_size=80), NEARLY)


@pytest.mark.parametrize("name", READERS)
@given(text=ANY)
def test_any_text_is_a_value_or_one_line(name: str, text: str) -> None:
    said = "a value"
    try:
        READERS[name](text)
    except argparse.ArgumentTypeError as error:
        said = str(error)
    assert len(said.splitlines()) == 1


@given(text=ANY)
def test_what_is_read_keeps_its_promise(text: str) -> None:
    for reader, holds in (
        (positive_integers, lambda value: isinstance(value, int) and value >= 1),
        (positive_numbers, lambda value: 0 < value < math.inf),
        (improvement_rates, lambda value: 0 <= value < 1),
        (policies, lambda name: find(name) is not None),
    ):
        try:
            found = reader(text)
        except argparse.ArgumentTypeError:
            continue
        assert 0 < len(found) <= MOST
        assert all(map(holds, found))


@given(st.lists(st.tuples(st.integers(-1000, 1000), st.integers(1, 9)), min_size=1, max_size=9))
def test_repetition_is_what_it_says(items: list[tuple[int, int]]) -> None:
    text = ",".join(f"{value}*{times}" for value, times in items)
    assert integers(text) == tuple(value for value, times in items for _ in range(times))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "'0' is not from 1 to 8"),
        ("9", "'9' is not from 1 to 8"),
        ("1" * 5000, "invalid int value: '1111"),
        ("1.5", "invalid int value: '1.5'"),
    ],
)
def test_an_integer_out_of_range_is_named_with_the_range(text: str, says: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as error:
        integer(1, 8)(text)
    assert says in str(error.value)
    assert len(str(error.value)) < 120


def test_a_parsers_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        OneLineParser(prog="it").error("a file\nwith a line\n  break")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "it: a file with a line break\n"
