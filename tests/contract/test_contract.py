"""The installed SGLang still is what our hooks, subclasses and calls rely on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.changed import Changed, Not, problem_with
from tests.contract.drift import imports, modules, unresolved_imports
from tests.contract.needs import (
    Attributes,
    Base,
    Calls,
    Fields,
    Keys,
    Names,
    Need,
    Options,
    Order,
    Sends,
    Signature,
    Value,
)
from tests.contract.row import Row
from tests.contract.source import Missing
from tests.contract.table import ROWS, page

PAGE = Path(__file__).parents[2] / "docs" / "upstream.md"


def label(row: Row) -> str:
    return f"{type(row.need).__name__}-{row.need.module.removeprefix('sglang.')}-{row.why[:40]}"


@pytest.mark.parametrize("row", ROWS, ids=label)
def test_what_is_relied_on_is_there(row: Row) -> None:
    problem = problem_with(row.need)
    by = ", ".join(f"sglang_cdsp.{name}" for name in row.by)
    assert not problem, f"{row.need.module}: {problem}. {by} rely on it: {row.why}"


# -- the table is complete ------------------------------------------------------------------


def test_every_import_from_sglang_resolves() -> None:
    assert unresolved_imports() == []


def test_every_module_that_imports_sglang_is_in_the_table() -> None:
    listed = {name for row in ROWS for name in row.by}
    using = {ours for ours, tree in modules().items() if any(imports(tree))}
    assert using - listed == set()


def test_the_table_names_modules_that_exist() -> None:
    ours = modules()
    for row in ROWS:
        assert set(row.by) <= set(ours), row


def test_no_row_stands_twice() -> None:
    assert len({(row.need, row.by) for row in ROWS}) == len(ROWS)


def test_the_page_says_the_same() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run: python -m tests.contract.table > docs/upstream.md"
    )


# -- the checks can fail --------------------------------------------------------------------

SCHEDULER = "sglang.srt.managers.scheduler"
NIXL = "sglang.srt.disaggregation.nixl.conn"
COMMON = "sglang.srt.disaggregation.common.conn"
BROKEN: list[tuple[Need, str]] = [
    (Names(SCHEDULER, ("Scheduler", "Gone")), "lacks Gone"),
    (Signature(SCHEDULER, "Scheduler.run_batch", ("other",)), "takes (batch, "),
    (Signature(SCHEDULER, "Scheduler.run_batch", ("batch",), ("gone",)), "takes no gone"),
    (Signature(SCHEDULER, "Scheduler.process_batch_result", ("batch",)), "also needs result"),
    (Signature(SCHEDULER, "Scheduler.run_batch", ("batch",), exact=True), "more than we pass"),
    (Attributes(SCHEDULER, "Scheduler", ("waiting_queue", "gone")), "lacks gone"),
    (Fields(NIXL, "TransferInfo", ("room", "gone")), "lacks gone"),
    (Options("sglang.srt.arg_groups.fields", ("dp_size", "gone")), "lacks gone"),
    (Base(NIXL, "NixlKVManager", "Gone"), "is no Gone"),
    (Calls(SCHEDULER, "Scheduler.on_idle", "self.gone"), "does not call self.gone"),
    (Calls(SCHEDULER, "Scheduler.on_idle", "self.is_fully_idle", in_loop=True), "in its loop"),
    (Order(NIXL, "TransferInfo.from_zmq", ("return cls(", "is_dummy = False")), "after the rest"),
    (Sends(COMMON, "CommonKVManager._encode_kv_status_message", ("gone",)), "sends no message"),
    (Value(NIXL, "GUARD", "b'other'"), "GUARD is "),
    (Not(Names(SCHEDULER, ("Scheduler",))), "there now is"),
    (
        Changed(Names(SCHEDULER, ("Gone",)), Names(SCHEDULER, ("Never",)), ""),
        "lacks Gone; sglang.srt.managers.scheduler lacks Never",
    ),
    (
        Keys(
            COMMON,
            "CommonKVManager.register_to_bootstrap",
            ("rank_ip", "gone"),
        ),
        "lacks gone",
    ),
]


@pytest.mark.parametrize(("need", "says"), BROKEN, ids=lambda case: type(case).__name__)
def test_each_kind_of_check_notices_drift(need: Need, says: str) -> None:
    assert says in need.problem()


@pytest.mark.parametrize(
    "need",
    [
        Names("sglang.srt.gone", ("x",)),
        Signature(SCHEDULER, "Scheduler.gone"),
        Attributes(SCHEDULER, "Gone", ()),
        Value(NIXL, "GONE", "1"),
    ],
)
def test_what_is_gone_altogether_is_named(need: Need) -> None:
    with pytest.raises(Missing, match=r"gone|Gone|GONE"):
        need.problem()
