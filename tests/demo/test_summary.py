"""The demonstration's last lines."""

from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.demo.client import Answer
from sglang_cdsp.demo.summary import SHORT_TOKENS, lines, percentile


def answer(tokens: int, ttft_s: float) -> Answer:
    """One of a prompt of so many tokens."""
    return Answer("a", tokens, 4, ttft_s=ttft_s, tpot_s=0.1, end_s=ttft_s + 1, text="")


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_a_value_that_enough_others_do_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


def test_short_and_long_prompts_have_a_line_each_beside_stocks() -> None:
    ours = [answer(SHORT_TOKENS, 1.0), answer(100, 2.0), answer(SHORT_TOKENS + 1, 3.0)]
    stock = [answer(SHORT_TOKENS, 4.0), answer(100, 5.0), answer(SHORT_TOKENS + 1, 6.0)]
    short, long = lines(ours, stock)
    assert short.startswith("TTFT of short prompts (up to 1,000 tokens):")
    assert short.endswith("P50 1.00 s (stock 4.00), P99 2.00 s (stock 5.00)")
    assert long.endswith("P50 3.00 s (stock 6.00), P99 3.00 s (stock 6.00)")


def test_without_stock_only_ours_are_told() -> None:
    (line,) = lines([answer(100, 2.0)], [])
    assert line.endswith("P50 2.00 s, P99 2.00 s")
