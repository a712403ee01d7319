"""`python -m sglang_cdsp profile`: the grid, what is read from a server, what counts."""

import json
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.cli import profile
from sglang_cdsp.cli.grid import MOST_PER_LENGTH, Chain, Point, chains, noise, typical
from sglang_cdsp.cli.profile import measure
from sglang_cdsp.cli.profile_checks import ProfileError, check_fit
from sglang_cdsp.planner.fit import fit_model
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.stack.processes import ServerFailedError
from sglang_cdsp.testing.stack import prefill_only
from tests.cli.calls import call
from tests.stand_in import QuietHandler, answering

TRUE = LatencyModel(
    ((1, Coefficients(0.01, 8e-5, 7e-8, 3.5e-8)), (2, Coefficients(0.02, 4e-5, 3.5e-8, 1.8e-8)))
)


@contextmanager
def fake_server(plan_log: Path, disturbed: float) -> Iterator[str]:
    """Answers like a pool whose chunks take what TRUE says, `disturbed` of them twice as long."""
    rng, lock = random.Random(0), threading.Lock()

    class Handler(QuietHandler):
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

    with answering(Handler) as url:
        yield url


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


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The measurements that were begun; each ends in a failure of its server."""
    begun: list[tuple[Any, ...]] = []

    def start(*given: Any) -> None:
        begun.append(given)
        (given[-1] / "logs").mkdir()
        (given[-1] / "logs" / "prefill.log").write_text("what went wrong")
        raise ServerFailedError(f"prefill ended; see {given[-1]}/logs/prefill.log")

    monkeypatch.setattr(profile, "_serve_and_measure", start)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    return begun


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a model with a context of 16,384 tokens."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 16_384}))
    return folder


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--sp-sizes", "0,1"), "item 0 is 0; give at least 1"),
        (("--sp-sizes", "a"), "item 0 is 'a'"),
        (("--sp-sizes", "1,5"), "--sp-sizes 5 needs as many instances"),
        (("--repeats", "0"), "'0' is not from 1"),
        (("--steps", "3"), "--steps 3 --max-tokens 8192 give too small a grid"),
        (("--max-tokens", "3"), "--steps 11 --max-tokens 3 give too small a grid"),
        (("--max-tokens", "16384"), "shorter than its context of 16384 tokens"),
        (("--out", "/proc/nobody/m.json"), "--out /proc/nobody/m.json: "),
        (("--samples", "/proc/nobody/s"), "--samples /proc/nobody/s: "),
        (("--log-directory", __file__), "--log-directory "),
        (("--model-path", "./absent"), "./absent: no such folder"),
        (("--model-path", "a/b/c"), "a/b/c: no such folder"),
        (("--model-path", str(Path(__file__).parent)), "config.json: No such file"),
    ],
)
def test_bad_options_get_one_line_before_a_server_starts(
    capsys: pytest.CaptureFixture[str],
    started: list[tuple[Any, ...]],
    model: Path,
    tmp_path: Path,
    flags: tuple[str, ...],
    says: str,
) -> None:
    given = ("profile", "--model-path", str(model), "--out", str(tmp_path / "m"))
    status, out, err = call(capsys, *given, *flags)
    assert (status, out) == (2, "")
    assert says in err
    assert err.startswith("python -m sglang_cdsp profile: ")
    assert err.count("\n") == 1
    assert started == []
    assert not (tmp_path / "m").exists()


def test_one_file_for_two_outputs(
    capsys: pytest.CaptureFixture[str], started: list[tuple[Any, ...]], model: Path, tmp_path: Path
) -> None:
    both = ("--out", str(tmp_path / "m"), "--samples", str(tmp_path / "." / "m"))
    status, _, err = call(capsys, "profile", "--model-path", str(model), *both)
    assert (status, started) == (2, [])
    assert "are the same file" in err


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 16), min_size=1, max_size=3, unique=True),
    st.integers(1, 20_000),
    st.integers(1, 20),
    st.booleans(),
)
def test_what_passes_the_trial_can_be_fitted(
    sizes: list[int], longest: int, steps: int, expands: bool
) -> None:
    try:
        check_fit(sorted(sizes), longest, steps, expands=expands)
    except ProfileError:
        return
    points = [p for c in chains(sorted(sizes), longest, steps) for p in c.points().values()]
    found = {p: [0.5 + (i % 7) / 10] for i, p in enumerate(points)}  # any times will do
    model, _ = fit_model(typical(found), model="m", device="d", expands=expands)
    assert model.sp_sizes == tuple(sorted(sizes))


def test_the_default_grid_passes_and_four_steps_do_not() -> None:
    check_fit([1, 2], 8192, 11)
    with pytest.raises(ProfileError, match="measure at least 3 lengths"):
        check_fit([1, 2], 8192, 4)


def test_the_log_that_a_failure_names_is_there(
    capsys: pytest.CaptureFixture[str], started: list[tuple[Any, ...]], model: Path, tmp_path: Path
) -> None:
    status, out, err = call(
        capsys, "profile", "--model-path", str(model), "--out", str(tmp_path / "m")
    )
    assert (status, out) == (1, "")
    assert len(started) == 1
    log = Path(err.split("see ")[1].strip())
    assert log.read_text() == "what went wrong"
    shutil.rmtree(log.parents[1])


def test_a_name_on_the_hub_stays_one(
    capsys: pytest.CaptureFixture[str],
    started: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"max_position_embeddings": 131_072}))
    asked: list[tuple[str, str]] = []

    def download(name: str, file: str) -> str:
        asked.append((name, file))
        if name == "org/absent":
            raise OSError("a long story\nin many lines")
        return str(config)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    given = ("profile", "--out", str(tmp_path / "m"), "--model-path")
    status, _, err = call(capsys, *given, "org/absent")
    assert (status, started) == (2, [])
    assert "no folder of that name here, and the hub does not give the model" in err
    assert err.count("\n") == 1
    status, _, err = call(capsys, *given, "org/model-7B")
    assert status == 1  # the server of this test always fails
    assert started[0][1] == "org/model-7B"
    assert asked == [("org/absent", "config.json"), ("org/model-7B", "config.json")]
    shutil.rmtree(started[0][-1])
    plan = prefill_only("org/model-7B")
    (command,) = plan.commands
    at = command.arguments.index("--model-path")
    assert command.arguments[at + 1] == "org/model-7B"
    assert "HF_HUB_OFFLINE" not in command.environment
    assert "HF_HUB_OFFLINE" in prefill_only(tmp_path).commands[0].environment


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool whose chunks take what TRUE says."""

    def found(options: Any, *_: Any) -> Any:
        plans = chains(options.sp_sizes, options.max_tokens, options.steps)
        points = {p for plan in plans for p in plan.points().values()}
        times = {p: [TRUE.predict(p.size, p.history, p.tokens)] for p in points}
        return times, {"device": "cpu", "tp_size": 1}

    monkeypatch.setattr(profile, "_serve_and_measure", found)


def test_output_and_file_say_what_was_measured(
    capsys: pytest.CaptureFixture[str], measured: None, model: Path, tmp_path: Path
) -> None:
    out, samples = tmp_path / "deep" / "m.json", tmp_path / "s.jsonl"
    flags = ("--max-tokens", "4096", "--steps", "9", "--samples", str(samples))
    status, said, _ = call(capsys, "profile", "--model-path", str(model), "--out", str(out), *flags)
    assert status == 0
    assert "measured: chunks of 256 to 4096 tokens after up to 3584, prompts of up to 4096" in said
    assert "extrapolated" in said
    fit = LatencyModel.load(out).fit
    assert fit["max_tokens"] == LatencyModel.load(out).measured_tokens == 4096
    assert fit["chunk_tokens"] == [256, 4096]
    assert fit["history_tokens"] == [0, 3584]
    assert len(samples.read_text().splitlines()) > 50
    plan = ("plan", "--queue", "0,0", "--latency-model", str(out), "--tokens")
    assert call(capsys, *plan, "8192")[2] == ""
    status, said, err = call(capsys, *plan, "131072")
    assert (status, err.count("\n")) == (0, 1)
    assert "measured up to 4096" in err
    assert "--max-tokens 131072" in err
    for command in ("simulate", "tune"):
        few = ("--requests", "5", "--instances", "2", "--latency-model", str(out))
        err = call(capsys, command, *few)[2]
        assert err.count("measured up to 4096") == 1, command


def test_minutes_of_measuring_are_not_lost_with_the_file(
    capsys: pytest.CaptureFixture[str], measured: None, model: Path
) -> None:
    # A device that opens but takes nothing, as a full disk does.
    flags = ("--model-path", str(model), "--out", "/dev/full")
    status, out, err = call(capsys, "profile", *flags)
    assert status == 1
    assert "--out /dev/full: No space left on device" in err
    assert err.count("\n") == 1
    text = out[out.index("{") :]
    assert LatencyModel.from_json(json.loads(text)).sp_sizes == (1, 2)
