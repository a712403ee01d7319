"""Every command with any flags: an answer or one line, never a traceback, never a slow start."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_cdsp.__main__ import main
from sglang_cdsp.simulator.types import Request
from tests.cli.calls import call
from tests.simulator.plan_logs import line, write
from tests.simulator.small_worlds import LINEAR

NUMBERS = st.one_of(
    st.integers(-3, 40).map(str),
    st.integers(-(10**30), 10**30).map(str),
    st.floats().map(str),
    st.sampled_from(["0*8,0.31*8", "1,2", "0*99999999", "1e308,1e308", "x", "", "-", "1_0", "²"]),
)
POLICIES = st.sampled_from(["cdsp", "cdsp-late", "fixed-sp:2", "loongserve", "fixed-sp:0", "best"])
PLAN = {
    "--tokens": NUMBERS,
    "--queue": NUMBERS,
    "--history": NUMBERS,
    "--history-instances": NUMBERS,
    "--sp-sizes": NUMBERS,
    "--instances-per-node": NUMBERS,
    "--free-tokens": NUMBERS,
    "--down": NUMBERS,
    "--improvement-rate": NUMBERS,
    "--min-chunk": NUMBERS,
    "--page-size": NUMBERS,
    "--spread-cost": NUMBERS,
    "--policy": POLICIES,
}
some = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def outcome(arguments: list[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, out.getvalue(), err.getvalue()


@some
@given(st.fixed_dictionaries({}, optional=PLAN))
def test_plan(flags: dict[str, str]) -> None:
    given = {"--tokens": "9000", "--queue": "0,0.5,0,0", **flags}
    arguments = [f"{flag}={value}" for flag, value in given.items()]
    status, out, err = outcome(["plan", *arguments])
    assert status in (0, 1, 2)
    assert bool(out) == (status != 2)
    assert err.count("\n") <= 1
    assert bool(err) or status != 2


SIMULATE = {
    "--requests": st.one_of(st.integers(-2, 30).map(str), st.just(str(10**30)), st.just("x")),
    "--instances": st.one_of(st.integers(-2, 20).map(str), st.just(str(10**30))),
    "--instances-per-node": NUMBERS,
    "--decode-instances": st.one_of(st.integers(-2, 4).map(str), st.just(str(10**30))),
    "--sp-sizes": NUMBERS,
    "--seed": NUMBERS,
    "--rate": NUMBERS,
    "--noise": NUMBERS,
    "--layers": NUMBERS,
    "--preempt-budget": NUMBERS,
    "--roles": st.one_of(NUMBERS, st.sampled_from(("2p2d", "4p", "p", "9999p"))),
    "--decode-share": NUMBERS,
    "--stock-tokens": NUMBERS,
    "--decode-model": st.one_of(NUMBERS, st.sampled_from(("0.1,0,0", "0,0,0", "1,2", "inf,0,0"))),
    "--improvement-rate": NUMBERS,
    "--policy": POLICIES,
}


@some
@given(st.fixed_dictionaries({}, optional=SIMULATE), st.booleans())
def test_simulate(flags: dict[str, str], one_server: bool) -> None:
    given = {"--requests": "20", **flags}
    arguments = [f"{flag}={value}" for flag, value in given.items()]
    form = ["--one-server"] if one_server else []
    status, out, err = outcome(["simulate", "--json", *form, *arguments])
    assert status in (0, 2)
    assert bool(out) == (status == 0)
    if status == 2:
        assert err.count("\n") == 1
    else:
        assert json.loads(out)["policies"]


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
SP = st.dictionaries(
    st.one_of(st.sampled_from(["1", "2", "01", "-1", str(10**30)]), st.text(max_size=3)),
    st.one_of(
        JSON,
        st.fixed_dictionaries(
            {name: st.one_of(st.floats(0, 1e300), st.integers(-1, 10**400)) for name in "abcd"}
        ),
    ),
    max_size=3,
)
MODELS = st.one_of(JSON, st.fixed_dictionaries({"sp": SP}, optional={"fit": JSON, "tp_size": JSON}))


@some
@given(st.one_of(MODELS.map(json.dumps), st.sampled_from(["[" * 10**5, "1" * 5000, "\ud800"])))
def test_any_latency_model(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    arguments = ["plan", "--tokens", "9000", "--queue", "0,0", "--latency-model", str(path)]
    status, _, err = outcome(arguments)
    assert status in (0, 1, 2)
    assert err.count("\n") <= 1


LOG_LINE = line("a", 0.0, 0.0, 0.8, (1000, [0, 1], 0.0, 0.8))


@some
@given(
    st.sampled_from(["rid", "prompt_tokens", "policy", "arrival_s", "bound_s", "ttft_s", "chunks"]),
    st.one_of(
        JSON,
        st.fixed_dictionaries({"measured": JSON}),
        st.lists(
            st.fixed_dictionaries(
                {
                    "tokens": st.one_of(st.just(1000), JSON),
                    "instances": st.one_of(st.lists(st.integers(-1, 3)), JSON),
                    "start_s": st.one_of(st.just(0.0), JSON),
                    "end_s": st.one_of(st.just(0.8), JSON),
                }
            ),
            max_size=2,
        ),
    ),
)
def test_any_plan_log(tmp_path: Path, field: str, value: object) -> None:
    log, model = tmp_path / "log", tmp_path / "model.json"
    LINEAR.save(model)
    write(log, [{**LOG_LINE, field: value}])
    status, out, err = outcome(["replay", str(log), "--latency-model", str(model), "--json"])
    assert status in (0, 2)
    assert bool(out) == (status == 0)
    assert err.count("\n") <= 1


@some
@given(st.lists(JSON, min_size=1, max_size=3))
def test_any_trace(tmp_path: Path, rows: list[object]) -> None:
    trace = tmp_path / "trace"
    good = json.dumps({"arrival_s": 0, "prompt_tokens": 9000, "output_tokens": 2})
    lines = [json.dumps({**row, "arrival_s": 1} if isinstance(row, dict) else row) for row in rows]
    trace.write_text("\n".join([good, *lines]) + "\n")
    status, out, err = outcome(["simulate", "--json", "--trace", str(trace)])
    assert status in (0, 2)
    assert bool(out) == (status == 0)
    assert err.count("\n") <= 1


WRITES = [
    ("tune", "--requests", "5", "--seeds", "1", "--to", "0.5"),
    ("simulate", "--requests", "5"),
]


@pytest.mark.parametrize("command", WRITES, ids=lambda command: command[0])
def test_an_output_that_cannot_be_written_is_found_out_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    def ran(*_: object, **__: object) -> tuple[Request, ...]:
        raise AssertionError("simulated before the output was tried")

    monkeypatch.setattr(f"sglang_cdsp.cli.{command[0]}.simulate", ran, raising=False)
    monkeypatch.setattr(f"sglang_cdsp.cli.{command[0]}.tune", ran)
    status, out, err = call(capsys, *command, "--out", "/proc/nobody/writes/here")
    assert (status, out) == (2, "")
    assert "--out /proc/nobody/writes/here: " in err
    assert err.count("\n") == 1


def test_replay_tries_its_output_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log, model = write(tmp_path / "log", [LOG_LINE]), tmp_path / "model.json"
    LINEAR.save(model)
    monkeypatch.setattr("sglang_cdsp.cli.replay.replay", None)
    command = ("replay", str(log), "--latency-model", str(model))
    status, out, err = call(capsys, *command, "--out", str(tmp_path))
    assert (status, out) == (2, "")
    assert "Is a directory" in err
    assert err.count("\n") == 1
