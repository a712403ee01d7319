"""The matrix: its cells, what is read off a cell's facts, and its file and table."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.servers.chaos.record import Death, Outcome, PlanLine, Planned, Run, Seat, Strike
from bench.servers.flags import some_of
from bench.servers.matrix.__main__ import main
from bench.servers.matrix.cells import (
    MOMENTS,
    SIZES,
    WAYS,
    Cell,
    Result,
    Results,
    Told,
    cells,
    markdown,
)
from bench.servers.matrix.trial import INSTANCES, VICTIM, event_of, plans, result_of
from sglang_cdsp.engine.fault_orders import MOMENTS as HOOK_MOMENTS
from sglang_cdsp.engine.fault_orders import FaultOrder

FAULT_S = 100.0


def outcome(part: str, how: str, ended_s: float) -> Outcome:
    right = True if how == "answered" else None
    words = "instance 1 was lost" if how == "error" else ""
    return Outcome(part, (part,), part, 99.0, ended_s, how, right=right, words=words)


def facts(cell: Cell, *, elsewhere: str = "answered", back_s: float | None = 130.0) -> Run:
    """Home was lost with the victim; who was elsewhere ended as is said."""
    seats = range(INSTANCES[cell.tp])
    lines = (
        PlanLine("home", 99.0, (Planned((VICTIM,), None),)),
        PlanLine("elsewhere", 99.0, (Planned((0,), None),)),
    )
    return Run(
        outcomes=(outcome("home", "error", 102.5), outcome("elsewhere", elsewhere, 103.0)),
        plans={line.rid: line for line in lines},
        strikes=(Strike(event_of(cell), FAULT_S),),
        deaths=(Death(VICTIM, 100.5, "ended", back_s),),
        seats=tuple(Seat(seat, "up") for seat in seats),
        slots_before=dict.fromkeys(seats, 10),
        slots_after=dict.fromkeys(seats, 10),
        after=dict.fromkeys(seats, True),
    )


def test_every_cell_is_a_fault_that_the_hook_knows() -> None:
    every = cells(WAYS, MOMENTS, SIZES)
    assert len(set(every)) == len(WAYS) * len(MOMENTS) * len(SIZES)
    for cell in every:
        event = event_of(cell)
        order = FaultOrder(event.do, VICTIM, event.moment, event.rank)
        assert order.moment in HOOK_MOMENTS
        assert event.rank == cell.tp - 1
        assert (event.for_s is not None) == (cell.way == "pause")


@pytest.mark.parametrize("instances", sorted(INSTANCES.values()))
def test_the_parts_are_what_they_are_called(instances: int) -> None:
    groups = {part: [group for _, group in plan] for part, plan in plans(instances).items()}
    assert groups["home"][0][0] == VICTIM
    assert groups["member"][0][0] != VICTIM
    assert VICTIM in groups["member"][0]
    assert VICTIM not in groups["later"][0]
    assert VICTIM in groups["later"][1]
    assert all(VICTIM not in group for group in groups["elsewhere"])
    for plan in groups.values():
        assert set(plan[0]) <= set(plan[1]) <= set(range(instances))


def test_a_cell_that_holds_tells_its_seconds() -> None:
    cell = Cell("kill", "layer", 1)
    run = facts(cell)
    result = result_of(cell, run, run.strikes[0])
    assert result.wrong == ()
    assert result.slots
    assert (result.error_s, result.noticed_s, result.back_s) == (2.5, 0.5, 30.0)
    assert result.cause == "ended"
    assert {told.part: told.how for told in result.clients} == {
        "home": "error",
        "elsewhere": "right",
    }


def test_a_cell_in_which_an_innocent_request_fails_does_not_hold() -> None:
    cell = Cell("kill", "layer", 2)
    run = facts(cell, elsewhere="error")
    result = result_of(cell, run, run.strikes[0])
    assert any("none of its parts was lost" in line for line in result.wrong)


def test_results_are_kept_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "matrix.json"
    assert Results.load(path) == Results()
    cell, other = Cell("stop", "idle", 2), Cell("kill", "idle", 1)
    first = Result(cell, (Told("home", "error", 1.0, 503, "lost"),), error_s=1.0, wrong=("x",))
    results = Results().having(first).having(Result(other, back_s=20.0))
    results.save(path)
    assert Results.load(path) == results
    assert [result.cell for result in results.ordered()] == [other, cell]
    again = results.having(Result(cell))
    assert len(again.by_cell) == 2
    assert again.by_cell[cell].wrong == ()


def test_the_table_shows_what_does_not_hold() -> None:
    cell = Cell("stop", "restart", 2)
    bad = Result(cell, (Told("home", "error", 1.0, 503),), wrong=("seats come back: late",))
    table = markdown([Result(Cell("kill", "idle", 1), back_s=21.0), bad])
    good_row, bad_row = table.splitlines()[2:4]
    assert "21.0 s" in good_row
    assert "**no**" not in good_row
    assert "home: 503" in bad_row
    assert "**no**" in bad_row
    assert "seats come back: late" in table


def test_an_unknown_name_is_told_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert some_of(WAYS)("kill,stop") == ("kill", "stop")
    with pytest.raises(SystemExit):
        main(["--moments", "noon"])
    assert "'noon' is none of idle" in capsys.readouterr().err
