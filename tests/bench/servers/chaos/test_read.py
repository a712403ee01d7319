"""Scenario files: what is read, and what is said of mistakes."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from bench.servers.chaos.read import ScenarioError, parse, read
from bench.servers.chaos.scenario import (
    KINDS,
    MIX,
    STATES,
    Checks,
    Event,
    Killer,
    Load,
    Servers,
)
from sglang_cdsp.engine.fault_orders import MOMENTS

SCENARIOS = Path(__file__).parents[4] / "bench" / "servers" / "chaos" / "scenarios"

WHOLE = """
name = "all of it"
seed = 3

[servers]
instances = 3
tp = 2
backend = "mooncake"
flags = ["--cdsp-seat-timeout", "60"]

[load]
seconds = 30
rate = 1.5
at_once = 4
stream = 0.5
abort = 0.0

[load.mix]
short = 2
shared = 1

[[events]]
at_s = 4
do = "kill"
seat = 2
rank = 1

[[events]]
at_s = 9.5
do = "stop"
seat = "drawn"
for_s = 20

[[events]]
at_s = 12
do = "full-disk"

[checks]
right = 0.8
error_within_s = 4
back_within_s = 90
down = [2]
"""


def wrong_lines(text: str) -> tuple[str, ...]:
    with pytest.raises(ScenarioError) as caught:
        parse(text, name="x")
    assert all("\n" not in line for line in caught.value.lines)
    return caught.value.lines


def test_all_of_it_is_read() -> None:
    scenario = parse(WHOLE, name="x")
    assert (scenario.name, scenario.seed) == ("all of it", 3)
    assert scenario.servers.instances == 3
    assert scenario.servers.flags == ("--cdsp-seat-timeout", "60")
    assert scenario.load.rate == 1.5
    assert scenario.load.mix["shared"] == 1
    assert scenario.load.mix["long"] == 0
    assert scenario.events == (
        Event(4.0, "kill", 2, rank=1),
        Event(9.5, "stop", None, for_s=20.0),
        Event(12.0, "full-disk", None, for_s=KINDS["full-disk"].lasts_s),
    )
    assert scenario.killer is None
    assert scenario.checks == Checks(0.8, 4.0, 90.0, (2,))


def test_what_is_left_open_has_a_value() -> None:
    scenario = parse("[killer]\n", name="file")
    assert scenario.name == "file"
    assert scenario.killer == Killer()
    assert scenario.events == ()
    assert parse("", name="x").killer is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("load = 3", "load is 3; give a table, [load]"),
        ("[load]\nrate = 0", "load.rate is 0; give a number from 0.01 to 1000"),
        ("[load]\nrate = nan", "load.rate is nan; give a number from 0.01 to 1000"),
        ("[load]\nrate = true", "load.rate is True; give a number from 0.01 to 1000"),
        ("[load]\nsecond = 3", "load.second: there is no such key; did you mean seconds?"),
        ("[load.mix]\nshort = 0", "load.mix is {'short': 0}; give a weight above 0 to one of"),
        (
            "[load.mix]\nlong = 1\nhuge = 1",
            "load.mix.huge: there is no such key; there are short, long",
        ),
        ("seed = -1", "seed is -1; give an integer from 0"),
        ("[servers]\ninstances = 1", "servers.instances is 1; give an integer from 2 to 16"),
        ("[servers]\nbackend = 'fake'", "servers.backend is 'fake'; give one of nixl, mooncake"),
        ("[servers]\nflags = ['--tp-size', '2']", "servers.flags is ['--tp-size', '2']; leave"),
        ("[events]\nat_s = 1", "events is {'at_s': 1}; give a list of tables, [[events]]"),
        ("[[events]]\ndo = 'explode'", "events[0].do is 'explode'; give one of kill, stop"),
        ("[[events]]\ndo = 'kill'\nseat = 0", "events[0].at_s is None; say when, in seconds"),
        ("[[events]]\nat_s = 1\ndo = 'kill'", "events[0].seat is None; give an integer from 0"),
        (
            "[[events]]\nat_s = 1\ndo = 'kill'\nseat = 4",
            "events[0].seat is 4; give an integer from 0 to 3",
        ),
        (
            "[[events]]\nat_s = 99\ndo = 'kill'\nseat = 0",
            "events[0].at_s is 99; give a number from 0 to 60",
        ),
        (
            "[[events]]\nat_s = 1\ndo = 'full-disk'\nseat = 0",
            "events[0].seat: there is no such key",
        ),
        (
            "[[events]]\nat_s = 1\ndo = 'cuda'\nseat = 0\nmoment = 'noon'",
            "events[0].moment is 'noon'; give one of turn, idle",
        ),
        ("[killer]\nkinds = ['kill', 'boom']", "killer.kinds is ['kill', 'boom']; give some of"),
        ("[killer]\nkinds = []", "killer.kinds is []; give some of kill"),
        ("[killer]\nfaults = 3", "killer.faults is 3; there are 6 kinds and each comes once"),
        (
            "[killer]\nkinds = ['kill']\nfaults = 9",
            "killer.faults is 9; 4 seats die 8 times at most: give fewer, more instances",
        ),
        ("[killer]\n[load]\nseconds = 4", "killer.faults is None; load.seconds is 4: give at"),
        ("[checks]\ndown = [7]", "checks.down is [7]; give a list of seats from 0 to 3"),
        ("[checks]\nresumed = 1", "checks.resumed is 1; only one server computes anew"),
        ("[servers]\nform = 'two'", "servers.form is 'two'; give one of disaggregated, one-server"),
        ("[check]\nright = 1", "check: there is no such key; did you mean checks?"),
        ("[load", "this is no TOML: "),
    ],
)
def test_a_mistake_is_told_in_a_line_with_its_remedy(text: str, line: str) -> None:
    (told,) = wrong_lines(text)
    assert told.startswith(line)


ONE_SERVER = '[servers]\nform = "one-server"\n'


def test_one_server_has_no_decode_server_that_is_killed() -> None:
    scenario = parse(f"{ONE_SERVER}[killer]\n", name="x")
    assert scenario.servers.one
    assert scenario.killer is not None
    assert set(Killer().kinds) - set(scenario.killer.kinds) == {"decode-restart"}
    (told,) = wrong_lines(f"{ONE_SERVER}[[events]]\nat_s = 1\ndo = 'decode-restart'")
    assert told.startswith("events[0].do is 'decode-restart'; one server has no decode server")
    (told,) = wrong_lines(f"{ONE_SERVER}[killer]\nkinds = ['decode-restart']")
    assert told.startswith("killer.kinds is ['decode-restart']; give some of kill")


def test_the_form_that_is_given_beside_the_file_goes_before_its_own() -> None:
    assert parse("", name="x", form="one-server").servers.one
    assert not parse(ONE_SERVER, name="x", form="disaggregated").servers.one


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_scenario_can_be_run_by_one_server(path: Path) -> None:
    assert read(path, "one-server").servers.one


def test_all_mistakes_are_told_together() -> None:
    text = "[load]\nrate = 0\nabort = 2\n[checks]\nright = 3\n[[events]]\ndo = 'kill'\n"
    assert len(wrong_lines(text)) == 5


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="No such file"):
        read(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_scenarios_of_the_repository_are_right(path: Path) -> None:
    assert read(path).name == path.stem


def test_there_are_scenarios() -> None:
    assert {path.stem for path in SCENARIOS.glob("*.toml")} >= {"ci", "killer", "degraded"}


def test_the_page_tells_of_every_key_and_event() -> None:
    page = (SCENARIOS / "README.md").read_text(encoding="utf-8")
    words = set(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL)))
    for table in (Servers, Load, Event, Killer, Checks):
        lacking = {field.name for field in fields(table)} - words - {"mix"}
        assert not lacking, f"{table.__name__}: {lacking}"
    assert {*KINDS, *MIX, *STATES, *MOMENTS} <= words
    assert {path.name for path in SCENARIOS.glob("*.toml")} <= words
