"""Grammars are compiled ahead of their requests; the controller hears of those that cannot be."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.constrained.base_grammar_backend import BaseGrammarObject, InvalidGrammarObject

from sglang_cdsp.engine.grammars import GrammarChecks
from sglang_cdsp.protocol.messages import GrammarOrder, GrammarRefused
from tests.engine.test_stock_requests import FakeReporter

ORDER = GrammarOrder(rid="r", kind="regex", text="(a")


class Backend:
    """SGLang's grammar backend: hands out the test's future or finished object."""

    def __init__(self, value: Any, *, cached: bool = False) -> None:
        self.value, self.cached = value, cached

    def get_cached_or_future_value(self, key: tuple[str, str], reasoning: bool) -> Any:
        assert key == ("regex", "(a")
        return self.value, self.cached


def checks(backend: Backend | None, *, leads: bool = True) -> tuple[GrammarChecks, FakeReporter]:
    reporter = FakeReporter()
    reporter.leads = leads  # type: ignore[attr-defined]
    manager = SimpleNamespace(grammar_backend=backend)
    return GrammarChecks(manager, reporter), reporter  # type: ignore[arg-type]


def refused(reporter: FakeReporter) -> list[str]:
    assert all(kind is GrammarRefused for kind, _ in reporter.said)
    return [fields["error"] for _, fields in reporter.said]


@pytest.mark.parametrize("cached", [False, True])
def test_a_grammar_that_cannot_be_compiled_is_refused_once(cached: bool) -> None:
    future: Future[Any] = Future()
    bad = InvalidGrammarObject("Unclosed '('")
    found, reporter = checks(Backend(bad if cached else future, cached=cached))
    found.begin(ORDER)
    found.poll()
    assert len(reporter.said) == int(cached)
    if not cached:
        future.set_result(bad)
    found.poll()
    found.poll()
    assert refused(reporter) == ["Failed to compile regex grammar: Unclosed '('"]


def test_a_good_grammar_is_not_mentioned() -> None:
    future: Future[Any] = Future()
    future.set_result(BaseGrammarObject())
    found, reporter = checks(Backend(future))
    found.begin(ORDER)
    found.poll()
    assert reporter.said == []


def test_a_compiler_that_raises_refuses_too() -> None:
    future: Future[Any] = Future()
    future.set_exception(ValueError("too deep"))
    found, reporter = checks(Backend(future))
    found.begin(ORDER)
    found.poll()
    assert refused(reporter) == ["Failed to compile regex grammar: too deep"]


def test_without_a_backend_every_grammar_is_refused() -> None:
    found, reporter = checks(None)
    found.begin(ORDER)
    assert "--grammar-backend" in refused(reporter)[0]


def test_one_rank_of_an_instance_compiles() -> None:
    found, reporter = checks(Backend(InvalidGrammarObject("no"), cached=True), leads=False)
    found.begin(ORDER)
    found.poll()
    assert reporter.said == []
