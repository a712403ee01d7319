"""Prompts beyond what a latency model was measured on: their times are extrapolated."""

from __future__ import annotations

from sglang_cdsp.planner.latency import LatencyModel

FAR = 2.0
"""How many times the longest measured prompt is far beyond it: the quadratic term, of which short
prompts show little, decides from about there."""


class MeasuredRange:
    """Watches the prompts that are planned, and warns once if one is far beyond the measured."""

    def __init__(self, model: LatencyModel) -> None:
        """A model that does not say what was measured is never warned about."""
        self._measured = model.measured_tokens
        self._warned = False

    def warning(self, tokens: int) -> str | None:
        """What to say about a prompt of so many tokens, history included; None: nothing."""
        if self._warned or self._measured is None or tokens <= FAR * self._measured:
            return None
        self._warned = True
        return (
            f"a prompt of {tokens} tokens, but the latency model was measured up to "
            f"{self._measured}: its times, and all plans so long, are extrapolated; measure with "
            f"'python -m sglang_cdsp profile --max-tokens {tokens}'"
        )
