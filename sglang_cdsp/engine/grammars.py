"""Grammars of requests that wait for decode, compiled ahead of SGLang's intake."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from sglang.srt.constrained.base_grammar_backend import InvalidGrammarObject

from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.stock import GrammarManager
from sglang_cdsp.protocol.messages import GrammarOrder, GrammarRefused


class GrammarChecks:
    """Grammars being compiled, of which the controller hears those that cannot be.

    Only the rank that speaks for its instance compiles. The result is not put into SGLang's cache:
    ranks whose caches differ would admit the request in different rounds of their loops.
    """

    def __init__(self, manager: GrammarManager, reporter: Reporter) -> None:
        """``manager`` is SGLang's ``GrammarManager``."""
        self._backend = manager.grammar_backend
        self._reporter = reporter
        self._compiling: list[tuple[GrammarOrder, Future[Any]]] = []

    def begin(self, order: GrammarOrder) -> None:
        """Start to compile."""
        if not self._reporter.leads:
            return
        if self._backend is None:
            self._refuse(order, "this server has no grammar backend; set --grammar-backend")
            return
        key = (order.kind, order.text)
        value, cached = self._backend.get_cached_or_future_value(key, order.reasoning)
        if cached:
            self._judge(order, value)
        else:
            self._compiling.append((order, value))

    def poll(self) -> None:
        """Report what has been compiled meanwhile; never blocks."""
        for order, future in [c for c in self._compiling if c[1].done()]:
            self._compiling.remove((order, future))
            error = future.exception()
            if error is None:
                self._judge(order, future.result())
            else:
                self._refuse(order, str(error))

    def _judge(self, order: GrammarOrder, value: Any) -> None:
        if isinstance(value, InvalidGrammarObject):
            self._refuse(order, value.error_message)

    def _refuse(self, order: GrammarOrder, reason: str) -> None:
        error = f"Failed to compile {order.kind} grammar: {reason}"
        self._reporter.send_from_leader(GrammarRefused, rid=order.rid or "", error=error)
