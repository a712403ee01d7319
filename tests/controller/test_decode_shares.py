"""Decode shares from a target."""

from __future__ import annotations

import logging

import pytest

from sglang_cdsp.controller.decode_shares import DecodeShares


def test_without_a_target_the_share_is_what_was_given() -> None:
    shares = DecodeShares(0.2, None)
    shares.stepped(0, 0.05)
    assert shares.of((0, 1)) == 0.2
    assert shares.of((0, 1), running=1, waiting=50) == 0.2
    assert shares.pace(0, 0.2) == pytest.approx(0.8)
    assert shares.stretch_s(0, 0.2) == pytest.approx(0.2)


def test_without_either_it_follows_who_runs_and_who_waits() -> None:
    shares = DecodeShares(None, None)
    assert shares.of((0, 1), running=3, waiting=3) == 0.2
    assert shares.of((0, 1), running=3, waiting=6) == pytest.approx(0.05)
    assert shares.of((0, 1), running=3, waiting=1e6) == pytest.approx(0.01)
    shares.stepped(0, 0.05)
    shares.stepped(1, 0.1)
    least = 0.1 / 1.1  # a stretch of a second at the one whose steps are longest
    assert shares.of((0, 1), running=3, waiting=1e6) == pytest.approx(least)
    assert shares.of((0,), running=3, waiting=1e6) == pytest.approx(0.05 / 1.05)
    assert shares.stretch_s(1, least) == pytest.approx(1.0)
    assert shares.pace(1, least) == pytest.approx(1 - least)


def test_a_chunk_gets_the_largest_share_that_a_member_needs() -> None:
    shares = DecodeShares(None, 0.2)
    assert shares.of((0, 1)) == 0.2  # nothing is measured
    shares.stepped(0, 0.03)
    shares.stepped(1, 0.05)
    assert shares.of((0,)) == pytest.approx(0.15)
    assert shares.of((0,), running=1, waiting=50) == pytest.approx(0.15), "a promise"
    assert shares.of((0, 1)) == pytest.approx(0.25)
    assert shares.of((2,)) == 0.2
    shares.gone(1)
    assert shares.of((0, 1)) == pytest.approx(0.15)


def test_a_target_that_cannot_be_met_is_named_with_one_that_can(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shares = DecodeShares(None, 0.06)
    with caplog.at_level(logging.WARNING):
        shares.stepped(0, 0.025)
        assert not caplog.records
        shares.stepped(0, 0.04)
        shares.stepped(1, 0.041)
    (said,) = caplog.messages
    assert "give --cdsp-tpot-target 0.080" in said
    assert shares.of((0,)) == 0.5


def test_a_pool_that_does_not_decode_has_no_share() -> None:
    shares = DecodeShares(0.0, None)
    assert shares.of((0, 1)) == 0.0
    assert shares.pace(0, 0.0) == 1.0
    assert shares.stretch_s(0, 0.0) == 0.0
