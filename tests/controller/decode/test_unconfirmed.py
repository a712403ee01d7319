"""Decode uses an aborted room's pages again without our word: the log says so, once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from sglang_cdsp.controller.decode.servers import RELEASE_S
from sglang_cdsp.controller.decode.unconfirmed import RELEASE_VAR
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.protocol.messages import WriteLost
from tests.controller.cases import ROOM, TWO_CHUNKS, phase_is, with_pages
from tests.controller.fake_pool import FakePool

SAID = "may use its pages again now"


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    def said() -> list[str]:
        return [text for text in caplog.messages if SAID in text]

    return said


def later(pool: FakePool, seconds: float) -> None:
    """Nobody reports anything; the loop comes round."""
    for _ in range(4):
        pool.now_s += seconds / 4
        pool.turn()


def test_writes_that_have_not_ended_are_named(
    pool: FakePool, warnings: Callable[[], list[str]]
) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(partial(phase_is, request, Phase.RUNNING))
    pool.decode_aborts(ROOM, 0)
    later(pool, 0.9 * RELEASE_S)
    assert warnings() == []
    later(pool, 10 * RELEASE_S)
    (warning,) = warnings()
    assert f"decode at decode:7000 gave bootstrap room {ROOM} up 30 s ago" in warning
    assert "instances [0, 1] have not said that their writes have ended" in warning
    assert RELEASE_VAR in warning
    pool.settle()
    assert pool.acks == {(ROOM, 0): 1}, "it is told all the same, in case it waits for longer"
    assert len(warnings()) == 1


def test_a_write_that_failed_in_an_unknown_state_is_named(
    pool: FakePool, warnings: Callable[[], list[str]]
) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(partial(phase_is, request, Phase.BOUND))
    lost = WriteLost(instance=0, tp_rank=0, at_s=1.0, seq=request.seq, error="lost", uncertain=True)
    pool.hear(lost)
    pool.decode_aborts(ROOM, 0)
    pool.settle()
    later(pool, RELEASE_S)
    (warning,) = warnings()
    assert "a write to them failed in an unknown state" in warning


def test_what_is_confirmed_in_time_is_no_matter(
    pool: FakePool, warnings: Callable[[], list[str]]
) -> None:
    with_pages(pool, TWO_CHUNKS)
    pool.decode_aborts(ROOM, 0)
    pool.settle()
    later(pool, 10 * RELEASE_S)
    assert pool.acks == {(ROOM, 0): 1}
    assert warnings() == []


def test_a_decode_server_that_is_gone_uses_nothing(
    pool: FakePool, warnings: Callable[[], list[str]]
) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    pool.until(partial(phase_is, request, Phase.RUNNING))
    pool.decode_aborts(ROOM, 0)
    pool.lifecycle.on_decode_link("decode", 7000, alive=False)
    later(pool, 10 * RELEASE_S)
    assert warnings() == []
