"""Stock servers on the CPU platform give the model's own answers, KV going through NIXL."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sglang  # noqa: F401 - must come before transformers, see platforms/schemas.py
import torch
from transformers import LlamaForCausalLM

from sglang_cdsp.testing.prompts import cut_prompts
from sglang_cdsp.testing.stack import RunningStack, disaggregated, running

OUTPUT_TOKENS = 12
IDLE_S = 5.0


@pytest.fixture(scope="module")
def servers(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Stock prefill, stock decode and router, started with no flag that names the platform."""
    plan = disaggregated(checkpoint, flags=("--max-total-tokens", "8000"))
    with running(plan, tmp_path_factory.mktemp("logs")) as stack:
        yield stack


def generate(url: str, ids: list[int]) -> Any:
    """Answer of ``/generate`` with the five best logprobs of every position."""
    body = {
        "input_ids": ids,
        "sampling_params": {"temperature": 0, "max_new_tokens": OUTPUT_TOKENS},
        "return_logprob": True,
        "top_logprobs_num": 5,
    }
    request = urllib.request.Request(
        f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


@pytest.mark.parametrize("length", [1, 300, 2500])
def test_answers_are_the_models(checkpoint: Path, servers: RunningStack, length: int) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = tokenizer.encode(cut_prompts(checkpoint, [4000])[0]).ids[:length]
    answer = generate(servers.url, ids)
    model = LlamaForCausalLM.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        reference = model.generate(
            torch.tensor([ids]),
            max_new_tokens=OUTPUT_TOKENS,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert answer["output_ids"] == reference.sequences[0, length:].tolist()
    for logits, served in zip(
        reference.logits, answer["meta_info"]["output_top_logprobs"], strict=True
    ):
        best = logits[0].log_softmax(-1).topk(5)
        assert [entry[1] for entry in served] == best.indices.tolist()
        torch.testing.assert_close(
            torch.tensor([entry[0] for entry in served]), best.values, atol=1e-3, rtol=0
        )


def test_idle_servers_do_not_spin(servers: RunningStack) -> None:
    members = [
        psutil.Process(pid) for server in servers.servers.values() for pid in server.members()
    ]
    before = [sum(member.cpu_times()[:2]) for member in members]
    for member in members:  # a spinning process would use most of this wait
        with pytest.raises(psutil.TimeoutExpired):
            member.wait(timeout=IDLE_S / len(members))
    used = [sum(m.cpu_times()[:2]) - b for m, b in zip(members, before, strict=True)]
    assert max(used) < 0.4 * IDLE_S
