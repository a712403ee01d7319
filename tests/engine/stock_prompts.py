"""A prompt, and SGLang's request of one."""

from __future__ import annotations

from array import array
from typing import Any
from unittest.mock import Mock

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.sampling.sampling_params import SamplingParams

from tests.engine.stock_pools import VOCAB, options

assert options, "SGLang's options, as far as they are read here"

PROMPT = list(range(2, 42))


def request(tokens: list[int], limit: int = 8, **more: Any) -> Req:
    """A request whose output has at most ``limit`` tokens."""
    params = SamplingParams(max_new_tokens=limit)
    params.normalize(None)
    req = Req("r", None, array("q", tokens), params, eos_token_ids={1}, vocab_size=VOCAB, **more)
    req.time_stats = Mock()
    return req
