"""A lost instance costs its own requests: one way to die a moment, and a minute of faults.

``python -m bench.servers.matrix`` and ``python -m bench.servers.chaos`` run all of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.servers.chaos.checks import judge
from bench.servers.chaos.observed import Pool, References
from bench.servers.chaos.report import table
from bench.servers.chaos.run import run
from bench.servers.chaos.scenario import Scenario
from bench.servers.matrix.cells import Cell, markdown
from bench.servers.matrix.starts import run_start
from bench.servers.matrix.trial import run_cell

WAY_OF = {
    "idle": "stop",
    "between": "exception",
    "layer": "kill",
    "transfer": "watchdog",
    "restart": "cuda",
}


@pytest.mark.parametrize("moment", WAY_OF)
def test_a_seat_dies_at(
    moment: str, scenario: Scenario, pool: Pool, references: References
) -> None:
    cell = Cell(WAY_OF[moment], moment, 1)
    result = run_cell(cell, pool, references, scenario.servers.instances)
    print(markdown([result]))
    assert not result.wrong, "\n".join(result.wrong)
    assert result.back_s is not None


def test_a_process_that_stands_for_a_moment_is_not_dead(
    scenario: Scenario, pool: Pool, references: References
) -> None:
    result = run_cell(Cell("pause", "layer", 1), pool, references, scenario.servers.instances)
    print(markdown([result]))
    assert not result.wrong, "\n".join(result.wrong)
    assert result.noticed_s is None
    assert {told.how for told in result.clients} == {"right"}


def test_a_minute_of_faults(scenario: Scenario, pool: Pool, references: References) -> None:
    facts = run(scenario, pool, references, print)
    verdicts = judge(facts, scenario.checks)
    told = table(scenario, facts, verdicts)
    print(told)
    assert all(verdict.holds for verdict in verdicts), told


def test_a_start_that_fails_ends_the_server_with_a_line(checkpoint: Path, tmp_path: Path) -> None:
    result = run_start(Cell("exception", "start", 1), checkpoint, tmp_path, print)
    print(markdown([result]))
    assert not result.wrong, "\n".join(result.wrong)
    assert "sglang-cdsp" in result.said
