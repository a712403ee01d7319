"""The engine's turn in SGLang's loops of a server that decodes itself."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from sglang.srt.managers.scheduler import Scheduler

from sglang_cdsp.engine.decoding import Decoding
from sglang_cdsp.engine.scheduler import PoolScheduler

STRETCH_S = 0.02


class Engine:
    """A chunk engine that looks at its scheduler in its turn."""

    held_tokens = 0
    decode_share = 0.2

    def __init__(self, scheduler: Any, *, computes: bool) -> None:
        self.scheduler = scheduler
        self.computes = computes
        self.seen: list[Any] = []

    def step(self) -> None:
        self.scheduler.happened.append("turn")
        self.seen.append(self.scheduler.last_batch)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What stock was asked to choose from."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(
        Scheduler, "get_next_batch_to_run", lambda self, **batches: found.append(batches)
    )
    return found


def scheduler(*, overlap: bool, computes: bool, penalties: bool = False) -> Any:
    """A scheduler that was never started, with one batch on its way."""
    made: Any = PoolScheduler.__new__(PoolScheduler)
    made.happened = []
    made.enable_overlap = overlap
    penalizers = SimpleNamespace(is_required=penalties)
    sampling = SimpleNamespace(penalizer_orchestrator=penalizers)
    made.last_batch = SimpleNamespace(reqs=["prefilled"], sampling_info=sampling)
    made.result_queue = deque([(made.last_batch, "result")] if overlap else [])
    made.process_batch_result = lambda batch, result: made.happened.append(result)
    made._cdsp = Engine(made, computes=computes)
    made._numbers = made._faults = made._cache_events = None
    made.coroutines = SimpleNamespace(stretch_s=STRETCH_S)
    joining: Any = SimpleNamespace(admit=lambda running: f"{running.name} and joined")
    slots: Any = SimpleNamespace(tell=lambda held, step_s: made.told.append((held, step_s)))
    made.told = []
    moving: Any = SimpleNamespace(take_out=lambda running: made.happened.append("out"))
    copying: Any = None
    made._decoding = Decoding(made, made._cdsp, made.coroutines, joining, moving, copying, slots)
    return made


RUNNING = SimpleNamespace(reqs=["decoding"], name="running")


def test_who_joins_is_there_when_stock_chooses(asked: list[dict[str, Any]]) -> None:
    one = scheduler(overlap=False, computes=True)
    last = one.last_batch
    one.get_next_batch_to_run(running_batch=RUNNING, last_batch=last)
    assert asked == [{"running_batch": "running and joined", "last_batch": last}]
    assert one.last_batch is last
    assert one.happened == ["turn", "out"]


def test_with_overlap_results_do_not_wait_for_a_chunk(asked: list[dict[str, Any]]) -> None:
    one = scheduler(overlap=True, computes=True)
    last = one.last_batch
    one.get_next_batch_to_run(running_batch=RUNNING, last_batch=last)
    assert one.happened == ["result", "turn", "out"]
    assert one._cdsp.seen == [last], "its requests are still followed"
    assert asked[0]["last_batch"] is last, "a prefill batch is merged as ever"
    assert one.last_batch is None, "its loop has no results to look after"
    assert not one.result_queue


@pytest.mark.parametrize(("computes", "penalties"), [(False, False), (True, True)])
def test_with_overlap_and_no_chunk_or_penalties_everything_is_stocks(
    computes: bool, penalties: bool, asked: list[dict[str, Any]]
) -> None:
    """Penalties count a token at each step, the last one whose result is in."""
    one = scheduler(overlap=True, computes=computes, penalties=penalties)
    last = one.last_batch
    one.get_next_batch_to_run(running_batch=RUNNING, last_batch=last)
    assert len(one.result_queue) == 1
    assert one.last_batch is last
    assert one.happened == ["turn", "out"]


def test_chunks_go_on_for_as_long_as_their_share_allows(asked: list[dict[str, Any]]) -> None:
    one = scheduler(overlap=False, computes=True)
    one._decoding.stepped(0.03)
    one.get_next_batch_to_run(running_batch=RUNNING, last_batch=None)
    assert one.coroutines.stretch_s == pytest.approx(0.12)
    one.get_next_batch_to_run(running_batch=SimpleNamespace(reqs=[], name=""), last_batch=None)
    assert one.coroutines.stretch_s == STRETCH_S
    assert one.told == [(0, 0.03)] * 2, "the controller hears what a step takes"


class DecodeBatch:
    """Requests that decode, of which each needs a slot for its next token."""

    batch_is_full = True

    def __init__(self, free: list[int], *rids: str) -> None:
        self.reqs = [SimpleNamespace(rid=rid) for rid in rids]
        self._free = free

    def check_decode_mem(self) -> bool:
        return self._free[0] >= len(self.reqs)

    def filter_batch(self, keep_indices: list[int] | None = None) -> None:
        if keep_indices is not None:
            self.reqs = [self.reqs[index] for index in keep_indices]

    def release_req(self, idx: int, remaing_req_count: int) -> None:
        self._free[0] += 50


def decoding(monkeypatch: pytest.MonkeyPatch, free: list[int], held: int) -> tuple[Any, list[str]]:
    """A scheduler with ``free[0]`` slots whose chunk tasks hold ``held``, and what it does."""
    done: list[str] = []

    def stock(_: Any, batch: DecodeBatch) -> DecodeBatch:
        done.append("stock")
        return batch

    monkeypatch.setattr(Scheduler, "update_running_batch", stock)
    one = scheduler(overlap=False, computes=True)
    one._cdsp.give_back = lambda: done.append("back")
    one._cdsp.held_tokens = held
    one._add_request_to_queue = lambda req, is_retracted: done.append(f"{req.rid} {is_retracted}")
    one.token_to_kv_pool_allocator = SimpleNamespace(page_size=1, available_size=lambda: free[0])
    return one, done


@pytest.mark.parametrize(
    ("free", "expected"), [(100, ["stock"]), (3, ["stock"]), (0, ["back", "stock"])]
)
def test_waiting_tasks_give_back_only_when_slots_are_short(
    free: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = [free]
    one, done = decoding(monkeypatch, slots, held=10)
    batch = DecodeBatch(slots, "a", "b", "c")
    assert one.update_running_batch(batch) is batch
    assert done == expected


def test_the_only_request_that_decodes_waits_for_slots_of_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SGLang would end it with an error: nobody else in its batch could be retracted."""
    slots = [0]
    one, done = decoding(monkeypatch, slots, held=10)
    batch = DecodeBatch(slots, "a")
    assert one.update_running_batch(batch) is batch
    assert done == ["back", "a True"]
    assert not batch.reqs
    assert not batch.batch_is_full


def test_without_tasks_that_hold_slots_the_end_of_the_only_request_is_stocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = [0]
    one, done = decoding(monkeypatch, slots, held=0)
    batch = DecodeBatch(slots, "a")
    one.update_running_batch(batch)
    assert done == ["back", "stock"]
    assert [req.rid for req in batch.reqs] == ["a"]


def test_what_decodes_waits_for_a_stretch_and_what_is_to_be_read_or_prefilled_does_not() -> None:
    """Only while chunks wait themselves is decode a reason to give the loop its turn."""
    one = scheduler(overlap=False, computes=True)
    one.waiting_queue, one.running_batch = [], SimpleNamespace(reqs=[])
    assert not one._has_work()
    one.running_batch = RUNNING
    assert one._has_work()
    assert not one._is_pressed()
    one.waiting_queue = ["prompt"]
    assert one._is_pressed()
    one.waiting_queue = []
    with zmq.Context() as context, context.socket(zmq.PULL) as inbox:
        one.recv_from_tokenizer = inbox
        port = inbox.bind_to_random_port("tcp://127.0.0.1")
        assert not one._is_pressed()
        with context.socket(zmq.PUSH) as outbox:
            outbox.connect(f"tcp://127.0.0.1:{port}")
            outbox.send(b"order")
            assert inbox.poll(10_000)
            assert one._is_pressed()
            inbox.recv()
