"""Requests as SGLang's tokenizer manager sends them."""

from __future__ import annotations

from array import array
from typing import Any

from sglang.srt.managers.io_struct import TokenizedGenerateReqInput, wrap_as_pickle
from sglang.srt.observability.req_time_stats import APIServerReqTimeStats
from sglang.srt.sampling.sampling_params import SamplingParams


def request(tokens: int = 4, **more: Any) -> TokenizedGenerateReqInput:
    """A request of ``tokens`` tokens; ``more`` overrides its other fields."""
    fields = {
        "rid": "r",
        "input_text": None,
        "input_ids": array("q", range(10, 10 + tokens)),
        "input_embeds": None,
        "mm_inputs": None,
        "token_type_ids": None,
        "sampling_params": SamplingParams(),
        "return_logprob": False,
        "logprob_start_len": -1,
        "top_logprobs_num": 0,
        "token_ids_logprob": None,
        "stream": False,
        "time_stats": wrap_as_pickle(APIServerReqTimeStats()),
    }
    return TokenizedGenerateReqInput(**{**fields, **more})
