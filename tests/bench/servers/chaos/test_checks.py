"""The checks on made-up runs: what passes, and above all what must not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.servers.chaos.checks import DEMANDED, judge
from bench.servers.chaos.record import Away, Death, Run, Seat, Strike
from bench.servers.chaos.scenario import Checks, Event
from tests.bench.servers.chaos.runs import DEATH, KILL, KILLED_S, good_run, line


def broken_rules(run: Run, checks: Checks | None = None) -> set[str]:
    return {verdict.name for verdict in judge(run, checks or Checks()) if not verdict.holds}


def changed(run: Run, number: int, **fields: Any) -> Run:
    outcomes = tuple(
        dataclasses.replace(outcome, **fields) if outcome.rid == f"r{number}" else outcome
        for outcome in run.outcomes
    )
    return dataclasses.replace(run, outcomes=outcomes)


FAILED: dict[str, Any] = {"how": "error", "right": None, "words": "instance 1 was lost"}


def test_a_run_in_which_one_request_was_lost_with_its_seat_passes() -> None:
    assert broken_rules(good_run()) == set()


def test_a_server_that_fails_everything_clearly_does_not_pass() -> None:
    run = good_run()
    for number in range(19):
        run = changed(run, number, **FAILED)
    assert broken_rules(run) >= {"who fails had a lost part", "most are right"}


@settings(deadline=None)
@given(st.sets(st.integers(0, 18), min_size=3))
def test_too_many_failures_do_not_pass_though_each_is_excused(numbers: set[int]) -> None:
    """All on the lost seat, all within the time: still less than 90 % of the answers."""
    run = good_run()
    plans = dict(run.plans)
    for number in numbers:
        run = changed(run, number, **FAILED, sent_s=99.0, ended_s=101.0)
        plans.update([line(number, [((1,), None)], 99.0)])
    assert broken_rules(dataclasses.replace(run, plans=plans)) == {"most are right"}


@settings(deadline=None)
@given(st.integers(0, 18))
def test_an_innocent_request_that_fails_does_not_pass(number: int) -> None:
    """It names the lost seat in its words, and ran on others."""
    run = changed(good_run(), number, **FAILED, sent_s=99.0, ended_s=101.0)
    plans = {**run.plans, **dict([line(number, [((0, 2), None)], 99.0)])}
    assert broken_rules(dataclasses.replace(run, plans=plans)) == {"who fails had a lost part"}


def test_a_plan_that_names_the_seat_only_later_is_no_excuse() -> None:
    run = good_run()
    plans = {**run.plans, **dict([line(19, [((0,), 102.0), ((0, 1), None)], 98.0)])}
    assert broken_rules(dataclasses.replace(run, plans=plans)) == {"who fails had a lost part"}


def test_a_loss_before_it_had_a_plan_is_no_excuse() -> None:
    """It waited for the seat, and has to end in time when that is lost again."""
    run = good_run()
    bound = dataclasses.replace(run.plans["r19"], bound_s=DEATH.at_s + 0.2)
    early = dataclasses.replace(run, plans={**run.plans, "r19": bound})
    assert "who fails had a lost part" in broken_rules(early)
    again = dataclasses.replace(
        changed(early, 19, ended_s=140.5),
        deaths=(DEATH, Death(1, 140.0, "killed", 170.0)),
        strikes=(KILL, Strike(Event(10.0, "kill", 1), 139.5)),
    )
    assert broken_rules(again) == set()


def test_a_failure_before_or_long_after_the_loss_is_no_excuse() -> None:
    before = changed(good_run(), 19, sent_s=90.0, ended_s=98.0)
    assert broken_rules(before) == {"who fails had a lost part"}
    after = changed(good_run(), 19, sent_s=103.0, ended_s=104.0)
    assert broken_rules(after) == {"who fails had a lost part"}


def test_a_failure_that_the_plan_log_does_not_know_is_no_excuse() -> None:
    run = good_run()
    plans = {rid: found for rid, found in run.plans.items() if rid != "r19"}
    assert broken_rules(dataclasses.replace(run, plans=plans)) == {"who fails had a lost part"}
    # While the log's disk was full, the client's own words have to do.
    full = dataclasses.replace(run, plans=plans, unlogged=((95.0, 110.0),))
    assert broken_rules(full) == set()
    silent = changed(full, 19, words="something happened")
    assert broken_rules(silent) == {"who fails had a lost part"}


def test_a_home_that_it_had_moved_to_is_a_part_of_it() -> None:
    run = good_run()
    name, plan = line(19, [((0, 2), 99.0)], 98.0)
    assert broken_rules(dataclasses.replace(run, plans={**run.plans, name: plan})) == {
        "who fails had a lost part"
    }
    moved = dataclasses.replace(plan, lost=frozenset({1}))
    assert broken_rules(dataclasses.replace(run, plans={**run.plans, name: moved})) == set()


def test_right_answers_that_were_computed_anew_are_counted() -> None:
    run, two = good_run(), Checks(resumed=2)
    plans = dict(run.plans)
    for number in (3, 5):
        assert broken_rules(dataclasses.replace(run, plans=plans), two) == {"tokens go on"}
        plans[f"r{number}"] = dataclasses.replace(plans[f"r{number}"], recalls=1)
    again = dataclasses.replace(run, plans=plans)
    assert broken_rules(again, two) == set()
    # One that is wrong does not count for it, and one that failed does not.
    assert "tokens go on" in broken_rules(changed(again, 3, right=False), two)
    assert "tokens go on" in broken_rules(changed(again, 5, **FAILED), two)


def test_an_error_that_comes_late_does_not_pass() -> None:
    assert broken_rules(changed(good_run(), 19, ended_s=KILLED_S + 5.2)) == {"errors come in time"}


def test_a_request_that_nobody_ends_does_not_pass() -> None:
    hung = changed(good_run(), 19, ended_s=KILLED_S + 120.0, words="ReadTimeout")
    assert broken_rules(hung) == {"errors come in time", "errors say what was lost"}


def test_an_error_that_does_not_name_the_instance_does_not_pass() -> None:
    vague = changed(good_run(), 19, words="Internal Server Error")
    assert broken_rules(vague) == {"errors say what was lost"}


def test_one_that_was_given_up_has_to_end_and_counts_for_nothing_else() -> None:
    left = changed(good_run(), 3, how="left", wanted=False, right=None)
    assert broken_rules(left) == set()
    assert broken_rules(changed(left, 3, left_s=12.0)) == {"errors come in time"}


def test_a_wrong_answer_does_not_pass() -> None:
    assert broken_rules(changed(good_run(), 4, right=False)) == {"answers are stock's"}


def test_a_seat_that_dies_by_itself_does_not_pass() -> None:
    """A seat that is slow was taken for dead, say."""
    run = good_run(deaths=(DEATH, Death(2, 130.0, "silent", 150.0)))
    assert broken_rules(run) == {"deaths are those that were caused"}
    twice = good_run(deaths=(DEATH, Death(1, 140.0, "silent", 160.0)))
    assert broken_rules(twice) == {"deaths are those that were caused"}


def test_a_death_that_the_server_does_not_tell_does_not_pass() -> None:
    assert "deaths are those that were caused" in broken_rules(good_run(deaths=()))
    short = Strike(Event(20.0, "stop", 2, for_s=0.3), 110.0)
    assert broken_rules(good_run(strikes=(KILL, short))) == set()
    never = Strike(Event(20.0, "stop", 2), 110.0)
    assert broken_rules(good_run(strikes=(KILL, never))) == {"deaths are those that were caused"}


def test_an_event_that_could_not_be_carried_out_does_not_pass() -> None:
    left_out = Strike(Event(20.0, "full-disk"), 0.0, "no right to mount")
    assert broken_rules(good_run(strikes=(KILL, left_out))) == {"every event was carried out"}


def test_a_seat_that_does_not_come_back_does_not_pass() -> None:
    seats = (Seat(0, "up"), Seat(1, "starting", 2), Seat(2, "up"))
    assert broken_rules(good_run(seats=seats)) == {"seats come back"}
    late = good_run(deaths=(dataclasses.replace(DEATH, back_s=KILLED_S + 121.0),))
    assert broken_rules(late) == {"seats come back"}
    assert broken_rules(good_run(seats=(), after={})) == {"seats come back"}


def test_a_seat_past_the_limit_is_down_with_a_reason_and_health_says_degraded() -> None:
    checks = Checks(down=(1,))
    down = (Seat(0, "up"), Seat(1, "down", 3, "restart limit"), Seat(2, "up"))
    gone = (dataclasses.replace(DEATH, back_s=None),)
    assert broken_rules(good_run(seats=down, degraded=True, deaths=gone), checks) == set()
    assert broken_rules(good_run(seats=down, deaths=gone), checks) == {"seats come back"}
    assert broken_rules(good_run(degraded=True), checks) == {"seats come back"}


@pytest.mark.parametrize(
    "fields",
    [
        {"slots_after": {0: 1000, 1: 1000, 2: 999}},
        {"slots_after": {0: 1000, 1: 1000}},
        {"slots_before": {}},
        {"decode_used": 3},
    ],
)
def test_slots_that_are_not_free_do_not_pass(fields: dict[str, Any]) -> None:
    assert broken_rules(good_run(**fields)) == {"slots are free"}


def test_a_seat_that_is_up_but_answers_wrong_does_not_pass() -> None:
    assert broken_rules(good_run(after={0: True, 1: False, 2: True})) == {"new requests are right"}
    assert broken_rules(good_run(after={0: True, 1: True})) == {"new requests are right"}


def test_decode_takes_its_own_requests_along_and_no_others() -> None:
    run = good_run(
        strikes=(Strike(Event(10.0, "decode-restart", for_s=1.0), KILLED_S),),
        deaths=(),
        away=(Away(KILLED_S, KILLED_S + 20.0),),
    )
    assert broken_rules(run) == set()
    before = changed(run, 19, ended_s=KILLED_S - 2.0)
    assert broken_rules(before) == {"who fails had a lost part"}


def test_a_pool_that_is_not_healthy_at_the_end_does_not_pass() -> None:
    assert broken_rules(good_run(health=503)) == {"seats come back"}


def test_a_run_without_requests_shows_nothing() -> None:
    assert "most are right" in broken_rules(good_run(outcomes=()))


def test_a_run_that_broke_does_not_pass() -> None:
    assert broken_rules(good_run(broken=("the router ended",))) == {"the run itself"}


REFUSED: dict[str, Any] = {
    "how": "error",
    "right": None,
    "status": 503,
    "words": f"{DEMANDED} instances that stay down",
}


def drained(**fields: Any) -> Run:
    """A run in which seat 2 is out of use from 95 to 105, and a request demands it."""
    strikes = (KILL, Strike(Event(0.0, "drain", 2), 95.0), Strike(Event(0.0, "start", 2), 105.0))
    request = {"demands": (0, 2), "sent_s": 100.0, "ended_s": 100.3, **REFUSED, **fields}
    return changed(good_run(strikes=strikes), 8, **request)


def test_who_demands_a_seat_that_is_out_of_use_is_refused() -> None:
    assert broken_rules(drained(), Checks(right=1.0 - 1 / 19)) == set()


@pytest.mark.parametrize(
    "fields",
    [
        {"demands": (0, 1)},
        {"demands": ()},
        {"words": "Internal Server Error"},
        {"sent_s": 90.0, "ended_s": 90.5},
        {"sent_s": 107.0, "ended_s": 108.0},
    ],
)
def test_others_are_not(fields: dict[str, Any]) -> None:
    assert "who fails had a lost part" in broken_rules(drained(**fields))


def test_a_refusal_comes_in_time() -> None:
    assert broken_rules(drained(ended_s=106.0)) == {"errors come in time"}


def test_who_waits_for_a_seat_that_dies_for_good_is_refused_then() -> None:
    down = tuple(Seat(i, "down" if i == 1 else "up", reason="too many deaths") for i in range(3))
    run = good_run(
        seats=down,
        degraded=True,
        deaths=(dataclasses.replace(DEATH, back_s=None),),
        after={0: True, 2: True},
    )
    waited = changed(run, 8, demands=(1,), sent_s=60.0, ended_s=DEATH.at_s + 0.4, **REFUSED)
    assert broken_rules(waited, Checks(down=(1,), right=0.9)) == set()
    late = changed(waited, 8, ended_s=DEATH.at_s + 5.4)
    assert broken_rules(late, Checks(down=(1,), right=0.9)) == {"errors come in time"}
