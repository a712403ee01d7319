"""The table of a run: which death is put down to which event."""

from __future__ import annotations

from bench.servers.chaos.checks import judge
from bench.servers.chaos.record import Death, Strike
from bench.servers.chaos.report import table
from bench.servers.chaos.scenario import Checks, Event, Load, Scenario, Servers
from tests.bench.servers.chaos.runs import good_run


def test_a_stop_that_cost_nothing_is_not_given_a_later_event_s_death() -> None:
    run = good_run(
        strikes=(
            Strike(Event(0.0, "stop", 1, for_s=0.4), 95.0),
            Strike(Event(0.0, "kill", 2), 99.0),
            Strike(Event(0.0, "kill", 1), 120.0),
        ),
        deaths=(Death(2, 99.4, "killed", 130.0), Death(1, 119.8, "killed", 150.0)),
    )
    scenario = Scenario("some", 0, Servers(), Load(), (), None, Checks())
    rows = [r for r in table(scenario, run, judge(run, Checks())).splitlines() if " seat " in r]
    stop, other, kill = (row.split("|")[-3:-1] for row in rows)
    assert [cell.strip() for cell in stop] == ["", ""]
    assert [cell.strip() for cell in other] == ["0.4 s: killed", "31 s"]
    assert [cell.strip() for cell in kill] == ["0.0 s: killed", "30 s"]
