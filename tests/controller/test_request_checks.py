"""What a pool cannot serve is known on arrival."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from sglang.srt.managers.io_struct import SessionParams
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_cdsp.controller.request_checks import grammar_order, unsupported
from tests.controller.fake_requests import request

VOCAB = 32


def asked(**fields: Any) -> Any:
    return request(4, **{"bootstrap_room": 7, "input_ids": array("q", [0, 31, 5, 6]), **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"session_id": "s"},
        {"session_params": SessionParams()},
        {"priority": 2},
        {"disagg_prefill_dp_rank": 0},
        {"return_logprob": True, "logprob_start_len": 4},
        {"logprob_start_len": 9},
        {"return_routed_experts": True, "routed_experts_start_len": 4},
        {"input_ids": None},
    ],
    ids=lambda fields: next(iter(fields), "plain"),
)
def test_what_can_be_served(fields: dict[str, Any]) -> None:
    assert unsupported(asked(**fields), VOCAB) == ""


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"bootstrap_room": None}, "through the router"),
        ({"disagg_prefill_dp_rank": 1}, "one prefill replica"),
        ({"sampling_params": SamplingParams(beam_width=2)}, "beam_width"),
        ({"return_sampling_mask": True}, "return_sampling_mask"),
        ({"session_params": SessionParams(id="s")}, "send the whole prompt"),
        ({"input_embeds": [[0.5]], "input_ids": None}, "input_embeds"),
        ({"positional_embed_overrides": object()}, "embed overrides"),
        ({"mm_inputs": object()}, "images"),
        ({"lora_id": "a"}, "lora_path"),
        ({"multi_item_delimiter_indices": [1]}, "without --cdsp"),
        ({"return_logprob": True, "logprob_start_len": 5}, "use a smaller one"),
        ({"return_routed_experts": True, "routed_experts_start_len": 5}, "between 0 and"),
        ({"input_ids": array("q", [5, 32])}, "token id 32"),
        ({"input_ids": array("q", [5, -1])}, "send ids from 0 to 31"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot(fields: dict[str, Any], says: str) -> None:
    assert says in unsupported(asked(**fields), VOCAB)


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({"json_schema": "{}"}, "json"),
        ({"regex": "a"}, "regex"),
        ({"ebnf": "g"}, "ebnf"),
        ({"ebnf": "g", "ebnf_full_assistant": True}, "full_assistant_ebnf"),
        ({"structural_tag": "t"}, "structural_tag"),
    ],
)
def test_a_grammar_is_asked_for_by_sglangs_key(params: dict[str, Any], kind: str) -> None:
    order = grammar_order(asked(sampling_params=SamplingParams(**params), require_reasoning=True))
    assert order is not None
    assert (order.rid, order.kind, order.reasoning) == ("r", kind, True)
    assert order.text == next(iter(params.values()))
    assert grammar_order(asked()) is None
