"""The bench of families: what it keeps from run to run, what it asks stock, what it shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.servers.families import __main__ as program
from bench.servers.families import stock
from bench.servers.families.asking import FEATURES, Asked, NothingThereError, drawn
from bench.servers.families.results import HELD, NOTHING_THERE, Results, Row, markdown
from bench.servers.families.stock import Stock


def test_rows_are_kept_with_their_figures(tmp_path: Path) -> None:
    path = tmp_path / "families.json"
    assert Results.load(path) == Results()
    row = Row().having("grammar", HELD, 1e-5, {"tokens": 6}).having("turns", "off", 2e-5, {"at": 1})
    results = Results().having("gemma-3/one", row).having("deepseek-v3/prefill", Row())
    results.save(path, tuple(FEATURES))
    assert Results.load(path) == results
    assert row.notes == {"tokens": 6, "at": 1}
    assert (tmp_path / "families.md").read_text() == markdown(results, tuple(FEATURES))


def test_a_row_holds_if_nothing_that_was_asked_for_went_wrong() -> None:
    row = Row({"grammar": HELD, "as transformers": NOTHING_THERE, "turns": "slots are held"})
    assert row.holds(["grammar", "as transformers"])
    assert not row.holds(["grammar", "turns"])
    assert not row.holds(["slots"])


def test_the_table_shows_what_went_wrong_and_what_was_not_tried() -> None:
    row = Row({"grammar": HELD, "turns": "a | b"}, 2.5e-6, {"transformers": 1e-5, "plans": 50})
    table = markdown(Results({"gemma-3/one": row}), ("grammar", "turns", "slots"))
    assert "| gemma-3 | one | ok | **no** |  | 50 |  | 2.5e-06 | 1.0e-05 |" in table
    assert "- gemma-3/one, turns: a | b" in table


class Server:
    """A stock server that counts what it is asked."""

    def __init__(self) -> None:
        self.starts, self.asked = 0, 0

    @contextmanager
    def start(self) -> Iterator[str]:
        self.starts += 1
        yield "http://stock"

    def answer(self, url: str, tokens: list[int], **fields: Any) -> dict[str, Any]:
        assert url == "http://stock"
        self.asked += 1
        meta = {"output_top_logprobs": [[]], "output_token_logprobs": [[]], "id": self.asked}
        return {"text": str(self.asked), "output_ids": [1], "meta_info": meta}


def test_stock_is_asked_once_from_run_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    monkeypatch.setattr(stock, "generate", server.answer)
    kept = tmp_path / "kept.json"
    with Stock(server.start, kept, "a checkpoint") as first:
        assert server.starts == 0, "nothing was asked yet"
        said = first.generate([1, 2])
        assert first.generate([1, 2]) is said
        assert first.generate([1, 2], logprob_start_len=0)["text"] == "2"
    with Stock(server.start, kept, "a checkpoint") as second:
        assert second.generate([1, 2]) == said
    assert (server.starts, server.asked) == (1, 2)
    with Stock(server.start, kept, "another") as other:
        other.generate([1, 2])
    assert (server.starts, server.asked) == (2, 3)
    assert "id" not in said["meta_info"]


def asked(tmp_path: Path, **changed: Any) -> Asked:
    fields: dict[str, Any] = {"seed": 1, "cases": 20, "auto_class": "", "info": ""}
    nobody: Any = None
    return Asked("", nobody, tmp_path, 3, 8192, **{**fields, **changed})


def test_what_failed_is_tried_again_with_the_last_feature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def feature(name: str) -> Any:
        def run(cell: Asked) -> None:
            called.append(name)
            if name == "as transformers":
                raise NothingThereError
            if name == "grammar" and called.count(name) == 1:
                raise AssertionError("off\nby much")
            cell.worst = max(cell.worst, 1e-6)

        return run

    monkeypatch.setattr(program, "FEATURES", {name: feature(name) for name in FEATURES})
    row = list(program._rows(asked(tmp_path), Row(), tuple(FEATURES)))[-1]
    assert row.features["grammar"] == "off"
    assert row.features["as transformers"] == NOTHING_THERE
    assert row.worst == 1e-6
    called.clear()
    called.append("grammar")
    row = list(program._rows(asked(tmp_path), row, tuple(FEATURES)))[-1]
    assert called[1:] == ["grammar", "slots"]
    assert row.holds(FEATURES)


def test_drawn_plans_are_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(checkpoint: Path, length: int, number: int) -> list[int]:
        return [number] * length

    monkeypatch.setattr("bench.servers.families.asking.cut_ids", cut)
    cases = drawn(asked(tmp_path))
    assert len(cases) == 20
    for tokens, plan in cases:
        assert sum(chunk for chunk, _ in plan) == len(tokens)
        for (chunk, group), (_, wider) in pairwise(plan):
            assert chunk % 8 == 0
            assert wider[: len(group)] == group
