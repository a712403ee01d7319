"""Outputs that need more slots than their home was taken to need: SGLang retracts, nobody loses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sglang_cdsp.controller.homes import OUTPUT_SHARE
from tests.serving.client import Plan, difference, text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE
from tests.serving_unified.client import OneServerClient

TOLERANCE = 1e-3
PROMPT, OUTPUT, AT_ONCE = 3950, 220, 3
PLAN: Plan = [(1800, [0]), (PROMPT - 1800, [0, 1])]
RETRACTED = "Retract requests"


def test_requests_that_are_retracted_get_stocks_answer(
    client: OneServerClient, checkpoint: Path
) -> None:
    """All fit home by what is promised for them, and not by what they generate."""
    assert AT_ONCE * (PROMPT + OUTPUT * OUTPUT_SHARE + 1) < INSTANCE_TOKENS - 64
    assert AT_ONCE * (PROMPT + OUTPUT) > INSTANCE_TOKENS
    log = client.servers.servers["pool"].log
    before = log.read_text(encoding="utf-8", errors="replace").count(RETRACTED)
    prompts = [text_tokens(checkpoint, PROMPT, 60 + number) for number in range(AT_ONCE)]
    limit: dict[str, Any] = {"sampling_params": {"max_new_tokens": OUTPUT}}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(lambda tokens: client.pool(tokens, PLAN, **limit), prompts))
    assert log.read_text(encoding="utf-8", errors="replace").count(RETRACTED) > before
    with ThreadPoolExecutor(AT_ONCE) as threads:
        expected = list(threads.map(lambda tokens: client.stock(tokens, **limit), prompts))
    for stock, ours in zip(expected, answers, strict=True):
        assert len(ours.tokens) == OUTPUT
        difference(stock, ours, TOLERANCE)
    everything = [INSTANCE_TOKENS] * POOL_SIZE
    assert client.wait_free(everything) == everything
