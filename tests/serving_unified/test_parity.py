"""One server answers as stock SGLang does: tokens and log-probabilities, for any plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.client import text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE
from tests.serving.plans import cases
from tests.serving.reference import TOLERANCE, Reference
from tests.serving_unified.client import OneServerClient

OUTPUT = 24
CASES = cases(POOL_SIZE)
# Long ones are few: `tests/serving` has more of them, and these servers are shaken as well.
ALONE = [case for case in CASES if case.seed < 2 and (case.length <= 4096 or not case.seed)]
TOGETHER = [case for case in CASES if case.seed >= 2 and (case.length <= 4096 or case.seed >= 5)]
BURST = [case for case in ALONE if not case.seed]


@pytest.fixture(scope="module")
def reference(client: OneServerClient, checkpoint: Path) -> Iterator[Reference]:
    found = Reference(client, checkpoint, OUTPUT)
    yield found
    print(f"\n{found.summary()}")


@pytest.fixture(scope="module")
def logged_before(plan_log: Path) -> int:
    """How many lines the plan log has of other tests."""
    return len(plan_log.read_text(encoding="utf-8").splitlines()) if plan_log.exists() else 0


@pytest.mark.parametrize(("length", "way"), [(case.length, f"seed{case.seed}") for case in ALONE])
def test_forced_plan_alone(length: int, way: str, reference: Reference, logged_before: int) -> None:
    case = next(case for case in ALONE if (case.length, f"seed{case.seed}") == (length, way))
    reference.check(case, reference.ask(case))


def test_forced_plans_eight_at_a_time(reference: Reference) -> None:
    reference.check_all(TOGETHER)
    # Near ties are stock's own: they must stay rare, or the suite would compare little.
    assert reference.early_stops <= len(CASES) // 10


def test_own_plans_on_a_burst(reference: Reference) -> None:
    reference.check_all(BURST, plan=False)


def test_every_slot_is_free_or_cached_afterwards(client: OneServerClient) -> None:
    everything = [INSTANCE_TOKENS] * POOL_SIZE
    assert client.wait_free(everything) == everything
    answer = client.post("/flush_cache")
    assert answer.status_code == 200, answer.text
    assert [int(state["free_tokens"]) for state in client.pool_states()] == everything


def test_several_samples_of_a_prompt(client: OneServerClient, checkpoint: Path) -> None:
    body = {
        "input_ids": text_tokens(checkpoint, 2000, 3),
        "sampling_params": {"temperature": 0, "max_new_tokens": 8, "n": 3, "ignore_eos": True},
    }
    answers = client.post("/generate", body).json()
    assert len({tuple(answer["output_ids"]) for answer in answers}) == 1
    assert len(answers) == 3


def test_a_prompt_that_no_instance_holds_is_refused(client: OneServerClient) -> None:
    answer = client.post("/generate", {"input_ids": [5] * (INSTANCE_TOKENS + 10)})
    assert answer.status_code == 400
    assert "tokens" in answer.text


def test_prompt_logprobs_are_stocks(client: OneServerClient, checkpoint: Path) -> None:
    """Each member computes those of its shard; home has them all before it goes on."""
    prompt = text_tokens(checkpoint, 900, 5)
    plan = {"custom_params": {"cdsp_plan": [[400, [1]], [500, [1, 0, 2]]]}}
    pool, stock = (client.servers.urls[name] for name in ("pool", "single"))
    ours = client.generate(pool, prompt, logprob_start_len=0, sampling_params=plan)
    other = client.generate(stock, prompt, logprob_start_len=0)
    mine, theirs = (answer.json()["meta_info"] for answer in (ours, other))
    for name in ("input_token_logprobs", "output_token_logprobs"):
        assert [entry[1] for entry in mine[name]] == [entry[1] for entry in theirs[name]]
        for own, their in zip(mine[name], theirs[name], strict=True):
            assert (own[0] is None) is (their[0] is None)
            assert own[0] is None or own[0] == pytest.approx(their[0], abs=TOLERANCE)
    assert len(mine["input_token_logprobs"]) == 900


def test_the_plan_log_has_every_request_once(plan_log: Path, logged_before: int) -> None:
    written = plan_log.read_text(encoding="utf-8").splitlines()[logged_before:]
    lines = [json.loads(line) for line in written]
    rids = [line["rid"] for line in lines]
    assert len(set(rids)) == len(rids)
    assert {line["outcome"] for line in lines if line["chunks"]} == {"finished"}
    sizes = {len(chunk["instances"]) for line in lines for chunk in line["chunks"]}
    assert sizes == {1, 2, 3, 4}
