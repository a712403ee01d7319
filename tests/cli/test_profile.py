"""`python -m sglang_cdsp profile`: the grid, what is read from a server, what counts."""

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sglang_cdsp.__main__ import main
from sglang_cdsp.cli.grid import MOST_PER_LENGTH, Chain, Point, chains, noise, typical
from sglang_cdsp.cli.profile import measure
from sglang_cdsp.cli.profile_checks import ProfileError
from sglang_cdsp.planner.fit import fit_model
from sglang_cdsp.planner.latency import Coefficients, LatencyModel

TRUE = LatencyModel(
    ((1, Coefficients(0.01, 8e-5, 7e-8, 3.5e-8)), (2, Coefficients(0.02, 4e-5, 3.5e-8, 1.8e-8)))
)


@contextmanager
def fake_server(plan_log: Path, disturbed: float) -> Iterator[str]:
    """Answers like a pool whose chunks take what TRUE says, `disturbed` of them twice as long."""
    rng, lock = random.Random(0), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            chunks, history = [], 0
            for tokens, group in body["sampling_params"]["custom_params"]["cdsp_plan"]:
                with lock:
                    factor = 2 if rng.random() < disturbed else 1
                seconds = factor * TRUE.predict(len(group), history, tokens)
                chunks.append({"start_s": 1.0, "end_s": 1.0 + seconds})
                history += tokens
            status = 200 if history == len(body["input_ids"]) else 400
            line = {"rid": body["rid"], "outcome": "finished", "chunks": chunks}
            with lock, plan_log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_grid_is_what_one_prompt_can_reach() -> None:
    plans = chains([1, 2], 8192, 11)
    assert [c.tokens for c in plans if c.size == 1] == [
        *(8192, 6144, 4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256)
    ]
    for chain in plans:
        points = chain.points()
        assert points[0] == Point(chain.size, 0, chain.tokens)
        assert len(points) <= MOST_PER_LENGTH
        assert all(p.history == index * chain.tokens for index, p in points.items())
        assert 8192 - chain.tokens < chain.tokens * chain.count <= 8192
    assert Chain(2, 100, 3).plan(1) == [(100, [2, 3])] * 3


def test_a_disturbed_pool_is_measured_right(tmp_path: Path) -> None:
    plan_log = tmp_path / "plans.jsonl"
    plan_log.touch()
    plans = chains([1, 2], 4096, 9)
    with fake_server(plan_log, disturbed=0.2) as url:
        found = measure(url, plan_log, plans, repeats=6, instances=2)
    assert {len(v) for p, v in found.items() if p.size == 1} == {12}  # two groups at once
    assert {len(v) for p, v in found.items() if p.size == 2} == {6}
    model, reports = fit_model(typical(found), model="m", device="d")
    assert max(report.mean for report in reports) < 0.05
    for size in (1, 2):
        assert model.predict(size, 1024, 2048) == pytest.approx(
            TRUE.predict(size, 1024, 2048), rel=0.05
        )
    assert noise(found) < 1e-6  # more than half of the runs were not disturbed at all


def test_a_refused_plan_ends_the_measurement(tmp_path: Path) -> None:
    plan_log = tmp_path / "plans.jsonl"
    plan_log.touch()

    class Short(Chain):
        def plan(self, group: int) -> list[tuple[int, list[int]]]:
            return super().plan(group)[1:]

    with fake_server(plan_log, 0.0) as url, pytest.raises(ProfileError, match="--max-tokens"):
        measure(url, plan_log, [Short(1, 100, 3)], repeats=1, instances=2)


@pytest.mark.parametrize(
    ("flag", "value"), [("--sp-sizes", "0,1"), ("--sp-sizes", "a"), ("--repeats", "0")]
)
def test_bad_options_get_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str, value: str
) -> None:
    arguments = ("profile", "--model-path", str(tmp_path), "--out", str(tmp_path / "m"))
    try:
        status = main((*arguments, flag, value))
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2
    assert capsys.readouterr().err.count("\n") == 1
