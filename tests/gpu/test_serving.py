"""Step 7 with stand-ins for the servers: what it asks, and that it notices what is wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import serving
from bench.gpu.record import Recorder
from bench.gpu.target import target_for
from sglang_cdsp.parallel.links.choose import LINKS_VAR
from sglang_cdsp.testing.stack import RunningStack
from tests.stand_in import QuietHandler, answering

DRY = target_for(dry_run=True)


@dataclass
class FakeServers:
    """Answers as SGLang does; an answer depends on every token of the prompt.

    Attributes:
        wrong_on: size of the groups whose answers are off by ``off``.
        lost: slots that are missing at the end.
        plans: that the pool was asked for.
        flushes: of stock's cache.
    """

    wrong_on: int = 0
    off: float = 0.5
    rounding: float = 0.0
    blind: bool = False
    lost: int = 0
    plans: list[Any] = field(default_factory=list)
    flushes: int = 0
    asked: int = 0

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """``/generate``."""
        plan = body["sampling_params"].get("custom_params", {}).get("cdsp_plan")
        off = 0.0
        if plan is not None:
            self.plans.append(plan)
            off = self.off if len(plan[-1][1]) == self.wrong_on else 0.0
        else:
            self.asked += 1
            off = self.rounding * (self.asked % 4 == 3)  # the whole prompt after its half
        draw = random.Random(0 if self.blind else str(body["input_ids"]))
        tops, ids = [], []
        for _ in range(body["sampling_params"]["max_new_tokens"]):
            tops.append([[draw.uniform(-9.0, -1.0) - off, token, None] for token in range(10, 15)])
            ids.append(max(tops[-1])[1])
        best = [max(entries) for entries in tops]
        meta = {"output_token_logprobs": best, "output_top_logprobs": tops}
        return {"output_ids": ids, "meta_info": meta}

    def info(self) -> dict[str, Any]:
        """``/server_info``."""
        free = 1000 - (self.lost if self.plans else 0)
        return {"internal_states": [{"cdsp": {"free_tokens": free}}] * 2}


@contextmanager
def served(fake: FakeServers) -> Iterator[str]:
    """The stand-in's URL."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.reply(fake.info())

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path.startswith("/flush_cache"):
                fake.flushes += 1
                self.reply({})
            else:
                self.reply(fake.answer(json.loads(text)))

        def reply(self, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with answering(Handler) as url:
        yield url


@pytest.fixture
def run(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:  # FakeServers -> checks by name
    monkeypatch.setenv(LINKS_VAR, "")  # the step sets it
    (tmp_path / serving.CHECKPOINT).symlink_to(checkpoint)

    def with_servers(fake: FakeServers) -> dict[str, Any]:
        @contextmanager
        def running(plan: Any, logs: Path, **_: Any) -> Iterator[Any]:
            assert [c.name for c in plan.commands] == ["prefill", "decode", "router", "single"]
            with served(fake) as url:
                urls = dict.fromkeys(("prefill", "decode", "router", "single"), url)
                yield RunningStack(url, urls, {}, 1.0)

        monkeypatch.setattr(serving, "running", running)
        recorder = Recorder(tmp_path / "step6.jsonl", lambda line: None)
        serving.run(DRY, recorder)
        return {check.name: check for check in recorder.checks}

    return with_servers


def failed(checks: dict[str, Any]) -> set[str]:
    return {name.partition(", ")[2] or name for name, check in checks.items() if not check.ok}


def test_equal_answers_pass(run: Any) -> None:
    fake = FakeServers()
    checks = run(fake)
    assert not failed(checks), checks
    lengths = serving.IN_DRY_RUN.lengths
    assert len(checks) == 3 + 7 * len(lengths)
    assert [sum(tokens for tokens, _ in plan) for plan in fake.plans] == [
        length for length in lengths for _ in range(5)
    ]
    assert fake.flushes == 2 * len(lengths)
    assert checks[f"{lengths[0]} tokens, Q mode"].figures["tokens"] == serving.NEW_TOKENS


def test_a_pool_that_is_off_on_two_instances_fails_there(run: Any) -> None:
    assert failed(run(FakeServers(wrong_on=2))) == {"two instances", "growth", "Q mode"}


def test_what_stock_rounds_is_allowed_a_few_times(run: Any) -> None:
    # Stock differs from itself by 0.1, so the pool may by 0.4.
    assert not failed(run(FakeServers(rounding=0.1, wrong_on=2, off=0.3)))


def test_a_comparison_that_sees_nothing_fails(run: Any) -> None:
    assert failed(run(FakeServers(blind=True))) == {"another prompt shows"}
    assert failed(run(FakeServers(rounding=0.5))) == {"stock"}


def test_lost_slots_fail(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "FREE_WITHIN_S", 0.1)
    assert failed(run(FakeServers(lost=64))) == {"instances are free again"}
