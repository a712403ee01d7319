"""Stock's answers to the pairs of prompt and plan, and the pool's held against them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.serving.client import Answer, Client, difference, text_tokens
from tests.serving.plans import Case

TOLERANCE = 1e-3
AT_ONCE = 8


class Reference:
    """Stock's answers, asked for once per prompt, and the tally of early stops."""

    def __init__(self, client: Client, checkpoint: Path, output_tokens: int = 6) -> None:
        """``output_tokens``: asked of every prompt."""
        self._client = client
        self._checkpoint = checkpoint
        self._answers: dict[tuple[int, int], Answer] = {}
        self._output_tokens = output_tokens
        self.compared = 0
        self.early_stops = 0

    @property
    def _fields(self) -> dict[str, Any]:
        return {"sampling_params": {"max_new_tokens": self._output_tokens}}

    def prompt(self, case: Case) -> list[int]:
        """Its tokens."""
        return text_tokens(self._checkpoint, case.length, case.seed % 2)

    def ask(self, case: Case, *, plan: bool = True) -> Answer:
        """The pool's answer, with the pair's plan or one of the pool's own."""
        return self._client.pool(self.prompt(case), case.raw_plan if plan else None, **self._fields)

    def check(self, case: Case, ours: Answer) -> None:
        """The answer is stock's, and as long as it should be.

        Raises:
            AssertionError: it is not.
        """
        key = (case.length, case.seed % 2)
        if key not in self._answers:
            self._answers[key] = self._client.stock(self.prompt(case), **self._fields)
        assert len(ours.tokens) == self._output_tokens
        tokens, early = difference(self._answers[key], ours, TOLERANCE)
        self.compared += tokens
        self.early_stops += early

    def check_all(
        self, asked: Sequence[Case], *, plan: bool = True, at_once: int = AT_ONCE
    ) -> None:
        """Ask several at a time, and check all."""
        with ThreadPoolExecutor(at_once) as threads:
            answers = list(threads.map(lambda case: self.ask(case, plan=plan), asked))
        for case, answer in zip(asked, answers, strict=True):
            self.check(case, answer)

    def summary(self) -> str:
        """How much was compared."""
        return f"parity: {self.compared} tokens compared, {self.early_stops} early stops"
