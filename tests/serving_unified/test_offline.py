"""`sgl.Engine(cdsp=True, ...)` in a program of its own, beside the same stock server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serving.client import TOP, Answer, difference, text_tokens
from tests.serving_unified.client import OneServerClient

PROGRAM = """
import json, sys, time
import sglang as sgl

def main():
    asked = json.loads(sys.stdin.read())
    model = asked["model"]
    said = {"refused": []}

    def refused(**options):
        try:
            sgl.Engine(model_path=model, **options)
        except ValueError as error:
            said["refused"].append(str(error))

    refused(cdsp_policy="cdsp", dp_size=2)
    refused(cdsp=True, dp_size=2, cdsp_polcy="cdsp", cdsp_sp_sizes=(1, 9))
    pool = {"cdsp": True, "dp_size": 2, "cdsp_allow_request_plans": True}
    engine = sgl.Engine(model_path=model, max_total_tokens=12000, **pool)
    refused(dp_size=2)
    sampling = [
        {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True, "custom_params": custom}
        for custom in asked["custom"]
    ]
    said["answers"] = engine.generate(
        input_ids=asked["prompts"], sampling_params=sampling, return_logprob=True,
        top_logprobs_num=asked["top"],
    )
    first = asked["prompts"][0]
    chunks = engine.generate(input_ids=first, sampling_params=sampling[1], stream=True)
    said["streamed"] = [chunk["output_ids"] for chunk in chunks][-1]
    said["flushed"] = engine.flush_cache().success
    engine.shutdown()
    time.sleep(2.0)  # nobody ends this process because its controller has ended
    print("SAID " + json.dumps(said), flush=True)

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def asked(checkpoint: Path) -> dict[str, Any]:
    """What the program is to ask."""
    plan = {"cdsp_plan": [(700, [1]), (800, [1, 0])]}
    return {
        "model": str(checkpoint),
        "prompts": [
            text_tokens(checkpoint, n, seed) for seed, n in ((91, 1500), (92, 2600), (93, 40))
        ],
        "top": TOP,
        "custom": [plan, None, None],
    }


@pytest.fixture(scope="module")
def said(asked: dict[str, Any]) -> dict[str, Any]:
    """What the program says, once it has ended by itself."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith("SAID ")]
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("SAID "))
    return found


def test_answers_are_stocks(
    said: dict[str, Any], asked: dict[str, Any], client: OneServerClient
) -> None:
    for tokens, answer in zip(asked["prompts"], said["answers"], strict=True):
        compared, _ = difference(client.stock(tokens), Answer.of(answer), 1e-3)
        assert compared > 0
    assert said["streamed"] == said["answers"][0]["output_ids"]
    assert said["flushed"], "the last answer was here a moment ago"


def test_wrong_options_are_told_before_anything_starts(said: dict[str, Any]) -> None:
    without, wrong, second = said["refused"]
    assert "add --cdsp" in without
    assert "--cdsp-polcy" in wrong
    assert "raise --dp-size" in wrong
    assert "this process has a pool" in second
