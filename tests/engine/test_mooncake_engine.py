"""A write over Mooncake returns when nothing of it is in flight any more, whatever happens."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.transfer.mooncake_engine import (
    DONE,
    FAILED,
    GIVE_UP_S,
    IN_FLIGHT,
    NOT_TAKEN,
    PatientEngine,
    write_blocks,
)

SESSION = "10.0.0.9:1234"
ON_ITS_WAY = (0, -2)  # -2: Mooncake finds it slow, and goes on with it


class Mooncake:
    """Mooncake's engine: blocks end in any order; some fail, some are not taken at all."""

    def __init__(self, seed: int, failing: float = 0.0, refusing: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.failing, self.refusing = failing, refusing
        self.flying: dict[int, tuple[int, int, int]] = {}
        self.ended: Counter[str] = Counter()
        self.written: list[tuple[int, int, int]] = []
        self.most = 0
        self.now_s = 0.0
        self.stuck = False

    def transfer_submit_write(self, session: str, source: int, place: int, length: int) -> int:
        assert session == SESSION
        if self.rng.random() < self.refusing:
            self.ended["refused"] += 1
            return self.rng.choice(sorted(NOT_TAKEN))
        batch = 2**63 + len(self.written) + len(self.flying) + 1
        while batch in self.flying:
            batch += 1
        self.flying[batch] = (source, place, length)
        self.most = max(self.most, len(self.flying))
        return batch

    def transfer_check_status(self, batch: int) -> int:
        assert batch in self.flying, "Mooncake has freed it: asking again reads freed memory"
        if self.stuck or self.rng.random() < 0.5:
            return self.rng.choice(ON_ITS_WAY)
        block = self.flying.pop(batch)
        if self.rng.random() < self.failing:
            self.ended["failed"] += 1
            return FAILED
        self.written.append(block)
        return DONE

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def blocks_of(count: int) -> list[tuple[int, int, int]]:
    return [(100 * k, 10**6 + 100 * k, k + 1) for k in range(count)]


@given(seed=st.integers(0, 2**32), count=st.integers(0, 3 * IN_FLIGHT))
def test_every_block_arrives(seed: int, count: int) -> None:
    engine = Mooncake(seed)
    blocks = blocks_of(count)
    assert write_blocks(engine, SESSION, blocks, lambda: engine.now_s, engine.sleep) == 0
    assert sorted(engine.written) == blocks
    assert engine.most <= IN_FLIGHT


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 2 * IN_FLIGHT),
    failing=st.floats(0, 0.2),
    refusing=st.floats(0, 0.2),
)
def test_nothing_is_in_flight_after_a_failure(
    seed: int, count: int, failing: float, refusing: float
) -> None:
    engine = Mooncake(seed, failing, refusing)
    code = write_blocks(engine, SESSION, blocks_of(count), lambda: engine.now_s, engine.sleep)
    assert engine.flying == {}
    assert code == (-1 if engine.ended else 0)


def test_a_write_that_mooncake_never_ends_is_given_up() -> None:
    engine = Mooncake(1)
    engine.stuck = True
    assert write_blocks(engine, SESSION, blocks_of(3), lambda: engine.now_s, engine.sleep) == -1
    assert engine.now_s >= GIVE_UP_S


def test_it_takes_the_place_of_sglangs_wrapper() -> None:
    engine = Mooncake(2)
    patient = PatientEngine(SimpleNamespace(engine=engine, get_session_id=lambda: "me"))
    assert patient.get_session_id() == "me"
    assert patient.batch_transfer_sync(SESSION, [1, 2], [3, 4], [5, 6]) == 0
    assert sorted(engine.written) == [(1, 3, 5), (2, 4, 6)]
    with pytest.raises(ValueError, match="shorter"):
        patient.batch_transfer_sync(SESSION, [1, 2], [3], [5, 6])


def test_mooncakes_engine_has_what_is_called() -> None:
    native = pytest.importorskip("mooncake.engine", exc_type=ImportError).TransferEngine
    for name in ("transfer_submit_write", "transfer_check_status"):
        assert callable(getattr(native, name))
