"""Health checks go round among the seats that are up, and are not lost with one of them."""

from __future__ import annotations

import logging

import pytest

from sglang_cdsp.controller.health_checks import SAY_EVERY_S, HealthChecks


class Pool:
    """Three seats."""

    def __init__(self) -> None:
        self.up = [0, 1, 2]
        self.sent: list[tuple[int, str]] = []
        self.why = ""
        self.now_s = 0.0
        self.checks = HealthChecks(
            up=lambda: self.up,
            degraded=lambda: self.why,
            send=lambda seat, check: self.sent.append((seat, check)),
            clock=lambda: self.now_s,
        )


def test_round_among_those_that_are_up() -> None:
    pool = Pool()
    for name in "abcd":
        pool.checks.pass_on(name)
    assert pool.sent == [(0, "a"), (1, "b"), (2, "c"), (0, "d")]
    pool.up = [1]
    pool.checks.pass_on("e")
    assert pool.sent[-1] == (1, "e")


def test_a_lost_seats_last_check_is_asked_of_another() -> None:
    pool = Pool()
    pool.checks.pass_on("a")
    pool.up = [1, 2]
    pool.checks.lost(0)
    pool.checks.lost(0)
    assert pool.sent == [(0, "a"), (2, "a")]


def test_with_nobody_up_there_is_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool()
    pool.up = []
    pool.checks.pass_on("a")
    assert pool.sent == []
    assert "no instance is up" in caplog.text


def test_degraded_is_said_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool()
    with caplog.at_level(logging.WARNING):
        pool.checks.say_degraded()
        assert caplog.messages == []
        pool.why = "instance 1 is down"
        for _ in range(3):
            pool.checks.say_degraded()
        pool.now_s = SAY_EVERY_S
        pool.checks.say_degraded()
    assert caplog.messages == ["sglang-cdsp: degraded: instance 1 is down"] * 2
