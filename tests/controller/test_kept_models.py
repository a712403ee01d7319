"""Latency models that are kept: used where they belong, ignored where they do not, whole always."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.args import CACHE_VAR
from sglang_cdsp.controller import kept_models
from sglang_cdsp.controller.kept_models import MeasuredOn, kept_or_measured, place, read, write
from sglang_cdsp.planner.latency import Coefficients, LatencyModel

WORDS = st.text(max_size=12)
NUMBERS = st.integers(1, 1 << 20)
SIZES = st.sets(st.integers(1, 64), min_size=1, max_size=4).map(lambda found: tuple(sorted(found)))
MEASURED_ON = st.builds(
    MeasuredOn,
    model=WORDS,
    config=WORDS,
    device=WORDS,
    dtype=WORDS,
    tp_size=NUMBERS,
    sglang=WORDS,
    torch=WORDS,
    sp_sizes=SIZES,
    longest_chunk=NUMBERS,
    settings=st.dictionaries(WORDS, WORDS, max_size=3),
)
COEFFICIENTS = st.builds(
    Coefficients,
    a=st.floats(0, 1),
    b=st.floats(1e-12, 1),
    c=st.floats(0, 1),
    d=st.floats(0, 1),
)
NOON = datetime(2026, 11, 26, 12, 0, 30)
POOL = MeasuredOn(
    model="/models/llama 3 8B",
    config="d" * 64,
    device="some GPU",
    dtype="bfloat16",
    tp_size=1,
    sglang="0.5.21",
    torch="2.13.0",
    sp_sizes=(1, 2),
    longest_chunk=16384,
    settings={"quantization": "None"},
)
OTHER: dict[str, Any] = {
    "model": "/models/llama 3 8C",
    "config": "e" * 64,
    "device": "another GPU",
    "dtype": "float16",
    "tp_size": 2,
    "sglang": "0.5.23",
    "torch": "2.14.0",
    "sp_sizes": (1, 2, 4),
    "longest_chunk": 8192,
    "settings": {"quantization": "fp8"},
}


def model_of(sizes: tuple[int, ...], b: float = 1e-4) -> LatencyModel:
    return LatencyModel(tuple((size, Coefficients(0.01, b, 0.0, 0.0)) for size in sizes), "m", "d")


def never() -> LatencyModel:
    raise AssertionError("it was measured")


@given(MEASURED_ON, st.data())
def test_what_is_kept_comes_back(measured_on: MeasuredOn, data: st.DataObject) -> None:
    rows = tuple((size, data.draw(COEFFICIENTS)) for size in measured_on.sp_sizes)
    model = LatencyModel(rows, "m", "d", fit={"max_tokens": 9})
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), measured_on, model, NOON)
        kept = read(Path(folder), measured_on)
        assert [entry.name for entry in Path(folder).iterdir()] == [measured_on.file_name]
    assert kept is not None
    assert (kept.model, kept.path) == (model, path)
    assert kept.model.measured_tokens == 9
    assert kept.measured_at == "2026-11-26 12:00"


def test_a_restart_does_not_measure(tmp_path: Path) -> None:
    model, source = kept_or_measured(tmp_path, POOL, lambda: model_of((1, 2)), clock=lambda: NOON)
    again, later = kept_or_measured(tmp_path, POOL, never)
    assert model == again
    path = tmp_path / POOL.file_name
    assert source == f"measured at this start, kept in {path}"
    assert later == f"measured 2026-11-26 12:00, kept in {path}"


def test_measuring_anew_takes_the_place_of_what_was_kept(tmp_path: Path) -> None:
    write(tmp_path, POOL, model_of((1, 2)), NOON)
    new = model_of((1, 2), b=0.5)
    assert kept_or_measured(tmp_path, POOL, lambda: new, anew=True)[0] == new
    assert kept_or_measured(tmp_path, POOL, never)[0] == new


def test_every_field_has_another_value_here() -> None:
    assert set(OTHER) == {field.name for field in dataclasses.fields(MeasuredOn)}


@pytest.mark.parametrize("field", OTHER)
def test_another_pool_is_measured(field: str, tmp_path: Path) -> None:
    write(tmp_path, POOL, model_of(POOL.sp_sizes), NOON)
    other = dataclasses.replace(POOL, **{field: OTHER[field]})
    assert read(tmp_path, other) is None
    assert read(tmp_path, POOL) is not None


@given(MEASURED_ON)
def test_a_file_has_a_name_that_any_system_takes(measured_on: MeasuredOn) -> None:
    name = measured_on.file_name
    assert len(name) < 100
    assert name.endswith(".json")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")
    assert not name.startswith((".", "-"))


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), POOL, model_of(POOL.sp_sizes), NOON)
        assert path is not None
        data = json.loads(path.read_text())
    change(data)
    return json.dumps(data)


FAULTY = {
    "nothing": ("", "damaged"),
    "half of it": (changed(lambda data: None)[:200], "damaged"),
    "nesting": ("[" * 100_000, "damaged"),
    "another file": ('{"sp": {}}', "no latency model that a server has kept"),
    "a list": ("[]", "no latency model that a server has kept"),
    "a later format": (changed(lambda data: data.update(format=2)), "its format is 2"),
    "another device": (
        changed(lambda data: data["measured_on"].update(device="other")),
        "measured on something else",
    ),
    "no coefficients": (changed(lambda data: data.pop("latency_model")), "damaged"),
    "a bad coefficient": (
        changed(lambda data: data["latency_model"]["sp"]["1"].update(a=-1)),
        "coefficient a is -1",
    ),
    "a size less": (
        changed(lambda data: data["latency_model"]["sp"].pop("2")),
        "it has the SP sizes [1]",
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_file_that_cannot_be_used_is_named_ignored_and_replaced(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, reason = FAULTY[name]
    path = tmp_path / POOL.file_name
    path.write_text(text)
    new = model_of(POOL.sp_sizes)
    with caplog.at_level(logging.WARNING):
        assert kept_or_measured(tmp_path, POOL, lambda: new)[0] == new
    [record] = caplog.records
    assert str(path) in record.getMessage()
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()
    assert kept_or_measured(tmp_path, POOL, never)[0] == new


@settings(max_examples=200)
@given(st.binary(max_size=60), st.integers(0, 2000), st.integers(0, 60))
def test_no_damage_raises(junk: bytes, at: int, gone: int) -> None:
    """Bytes are replaced anywhere in a good file: its model or none, and nothing else."""
    good = changed(lambda data: None).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, POOL.file_name)
        path.write_bytes(good[:at] + junk + good[at + gone :])
        kept = read(Path(folder), POOL)
    assert kept is None or kept.model.sp_sizes == POOL.sp_sizes


def test_who_reads_while_others_write_sees_a_whole_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = [model_of(POOL.sp_sizes, b) for b in (0.25, 0.5)]
    write(tmp_path, POOL, models[0], NOON)

    def keep_writing(model: LatencyModel) -> None:
        for _ in range(40):
            write(tmp_path, POOL, model, NOON)

    writers = [threading.Thread(target=keep_writing, args=(model,)) for model in models]
    for writer in writers:
        writer.start()
    seen = [read(tmp_path, POOL)]
    while any(writer.is_alive() for writer in writers):
        seen.append(read(tmp_path, POOL))
    assert all(kept is not None and kept.model in models for kept in seen)
    assert caplog.records == []


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / POOL.file_name).mkdir()
    assert read(tmp_path, POOL) is None
    assert str(tmp_path / POOL.file_name) in caplog.text


def test_a_folder_that_cannot_be_made_costs_the_next_start_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    model, source = kept_or_measured(tmp_path / "file" / "x", POOL, lambda: model_of((1, 2)))
    assert (model, source) == (model_of((1, 2)), "measured at this start")
    assert "--cdsp-cache" in caplog.text


def test_a_write_that_fails_half_way_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, POOL, model_of((1, 2)), NOON)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert write(tmp_path, POOL, model_of((1, 2), b=0.5), NOON) is None
    monkeypatch.undo()
    kept = read(tmp_path, POOL)
    assert kept is not None
    assert kept.model == model_of((1, 2))
    assert len(list(tmp_path.iterdir())) == 1


def test_the_place_is_as_stated_or_the_variables_or_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VAR, str(tmp_path / "variable"))
    assert place(str(tmp_path / "stated")) == tmp_path / "stated" / "latency"
    assert place(None) == tmp_path / "variable" / "latency"
    monkeypatch.delenv(CACHE_VAR)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert place(None) == tmp_path / "xdg" / kept_models.APP / "latency"
