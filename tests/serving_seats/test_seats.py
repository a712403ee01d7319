"""An instance that is lost, or asked to leave, costs its own requests only, and comes back."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.serving.asking import call, pool, words
from tests.serving.client import Client, Plan, difference, text_tokens
from tests.serving_seats.seats import scheduler, seats, states, until, until_up

BOTH: Plan = [(600, [0, 1])]
GROWS: Plan = [(400, [0]), (500, [0, 1])]
TOLERANCE = 1e-3


def right(client: Client, checkpoint: Path, length: int, seed: int, plan: Plan | None) -> None:
    """The pool's answer is stock's."""
    tokens = text_tokens(checkpoint, length, seed)
    compared, early = difference(client.stock(tokens), client.pool(tokens, plan), TOLERANCE)
    assert compared or early


def test_a_killed_instance_comes_back_and_the_other_one_goes_on(
    client: Client, checkpoint: Path, plan_log: Path
) -> None:
    right(client, checkpoint, 600, 1, BOTH)
    free, before = client.free_tokens(), seats(client)[1]
    scheduler(client, 1).kill()
    until(lambda: states(client)[1] != "up")
    for seed in range(5):
        right(client, checkpoint, 700, seed, None)
    until_up(client)
    right(client, checkpoint, 600, 2, BOTH)
    right(client, checkpoint, 900, 3, GROWS)
    assert client.wait_free(free) == free, "as many slots as before"
    seat = seats(client)[1]
    assert seat["incarnation"] == before["incarnation"] + 1
    assert seat["restarts"] == before["restarts"] + 1
    assert seat["deaths"][-1]["cause"] == "ended"
    assert "SIGKILL" in seat["deaths"][-1]["words"]
    lines = map(json.loads, plan_log.read_text(encoding="utf-8").splitlines())
    told = [line["state"] for line in lines if line.get("kind") == "seat" and line["seat"] == 1]
    assert told[-5:] == ["ending", "down", "starting", "joining", "up"]


def test_a_prompt_for_the_whole_pool_waits_for_an_instance_that_comes_back(
    client: Client, checkpoint: Path
) -> None:
    scheduler(client, 0).send_signal(signal.SIGKILL)
    until(lambda: states(client)[0] != "up")
    right(client, checkpoint, 600, 4, BOTH)
    assert states(client) == ["up", "up"]


def test_an_instance_is_asked_to_leave_and_returns(client: Client, checkpoint: Path) -> None:
    victim = scheduler(client, 1)
    assert pool(client, "/cdsp/update", {"seats": {"1": "drain"}}).status_code == 200
    until(lambda: states(client)[1] == "down")
    assert not victim.is_running()
    assert seats(client)[1]["reason"] == "drained on request"
    right(client, checkpoint, 700, 5, None)
    refused = pool(client, "/cdsp/update", {"seats": {"0": "drain"}})
    assert refused.status_code == 400
    assert "the last one that works" in words(refused)
    assert call(client, "prefill", "GET", "/health").status_code == 200
    assert pool(client, "/cdsp/update", {"seats": {"1": "start"}}).status_code == 200
    until_up(client)
    right(client, checkpoint, 600, 6, BOTH)


@pytest.mark.parametrize(
    ("seats", "said"),
    [({"2": "drain"}, "there is no seat 2"), ({"0": "restart"}, "cannot be told")],
)
def test_what_cannot_be_asked_of_seats(client: Client, seats: Any, said: str) -> None:
    refused = pool(client, "/cdsp/update", {"seats": seats})
    assert refused.status_code == 400
    assert said in words(refused)


def test_a_pool_whose_instances_are_all_lost_comes_back(client: Client, checkpoint: Path) -> None:
    for seat in (0, 1):
        scheduler(client, seat).kill()
    until(lambda: "up" not in states(client))
    assert call(client, "prefill", "GET", "/health").status_code == 503
    right(client, checkpoint, 500, 7, None)
    until_up(client)
    assert call(client, "prefill", "GET", "/health").status_code == 200


def test_no_process_of_a_former_life_is_left(client: Client) -> None:
    server = psutil.Process(client.servers.servers["prefill"].pid)
    found = [p for p in server.children(recursive=True) if "scheduler" in " ".join(p.cmdline())]
    assert sorted(p.pid for p in found) == sorted(scheduler(client, seat).pid for seat in (0, 1))
