"""Prompts beyond what the latency model was measured on: one warning, with the remedy."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.planner.latency import LatencyModel, builtin_model
from sglang_cdsp.planner.measured_range import FAR, MeasuredRange


def model(**fit: Any) -> LatencyModel:
    return replace(builtin_model(), fit=fit)


@given(st.lists(st.integers(1, 100_000), max_size=20))
def test_only_the_first_prompt_far_beyond_is_warned_about(prompts: list[int]) -> None:
    watch = MeasuredRange(model(max_tokens=8192))
    said = [watch.warning(tokens) for tokens in prompts]
    far = [tokens for tokens in prompts if tokens > FAR * 8192]
    warnings = [text for text in said if text]
    assert len(warnings) == bool(far)
    if far:
        assert f"a prompt of {far[0]} tokens" in warnings[0]
        assert f"--max-tokens {far[0]}" in warnings[0]


@pytest.mark.parametrize(
    "fit", [{}, {"max_tokens": "8192"}, {"max_tokens": 0}, {"max_tokens": True}]
)
def test_a_model_that_does_not_say_is_not_warned_about(fit: dict[str, Any]) -> None:
    assert model(**fit).measured_tokens is None
    assert MeasuredRange(model(**fit)).warning(10**9) is None


def test_the_range_survives_file_and_correction() -> None:
    assert builtin_model().measured_tokens == 256 * 1024  # Table I ends there
    read = LatencyModel.from_json(model(max_tokens=4096).to_json())
    assert read.with_factors({1: 1.5}).measured_tokens == 4096
