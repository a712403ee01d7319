"""A profile that cannot be made is refused or given up, and the server goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import ProfileReq, ProfileReqOutput, ProfileReqType

from sglang_cdsp.engine.profiles import SafeProfiles

START = ProfileReq(req_type=ProfileReqType.START_PROFILE)
STOP = ProfileReq(req_type=ProfileReqType.STOP_PROFILE)


class Profiler:
    """torch's."""

    def __init__(self) -> None:
        self.stopped = 0

    def stop(self) -> None:
        self.stopped += 1
        raise RuntimeError("it never started")


class Stock:
    """SGLang's manager, which fails when told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.profile_in_progress = False
        self.profile_by_stage = True
        self.profiler_start_forward_ct: int | None = 3
        self.profiler_target_forward_ct: int | None = 5
        self.torch_profiler: Any = None
        self.profile_id = "mine"
        self.batches = 0

    def _profile(self, request: Any) -> Any:
        self._fail()
        return ProfileReqOutput(success=True, message="Succeeded")

    def _profile_batch_predicate(self, batch: Any) -> None:
        self._fail()
        self.batches += 1

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


def test_what_works_is_stocks() -> None:
    stock = Stock()
    profiles = SafeProfiles(stock)
    assert profiles._profile(START).success
    profiles._profile_batch_predicate(None)
    assert stock.batches == 1
    assert profiles.profile_id == "mine"


@pytest.mark.parametrize(
    ("error", "words"),
    [(AssertionError(), "AssertionError"), (PermissionError("/root"), "/root")],
    ids=["assertion", "folder"],
)
def test_a_request_that_fails_is_answered(error: Exception, words: str) -> None:
    stock = Stock()
    stock.error = error
    for request in (START, STOP):
        answer = SafeProfiles(stock)._profile(request)
        assert not answer.success
        assert words in answer.message
        assert "profile_by_stage" in answer.message


def test_a_profile_that_fails_at_a_batch_is_given_up() -> None:
    stock = Stock()
    stock.error, stock.profile_in_progress, profiler = OSError("full"), True, Profiler()
    stock.torch_profiler = profiler
    SafeProfiles(stock)._profile_batch_predicate(None)
    assert profiler.stopped == 1
    assert stock.torch_profiler is None
    assert not stock.profile_in_progress
    assert not stock.profile_by_stage
    assert stock.profiler_start_forward_ct is stock.profiler_target_forward_ct is None


def test_a_second_profile_is_refused_while_one_is_recorded() -> None:
    stock = Stock()
    stock.profile_in_progress = True
    profiles = SafeProfiles(stock)
    assert "/stop_profile" in profiles._profile(START).message
    assert profiles._profile(STOP).success


def test_the_second_form_is_given_up_too() -> None:
    trigger = SimpleNamespace(running_state="prefill", stage_configs={"prefill": 1})
    manager = SimpleNamespace(stage_based_trigger=trigger, profiler="torch's")

    def fail(*_: Any) -> Any:
        raise NotImplementedError("manually stop")

    stock = SimpleNamespace(_profile_manager=manager, _profile=fail, _profile_batch_predicate=fail)
    profiles = SafeProfiles(stock)
    assert "/stop_profile" in profiles._profile(START).message, "one is being recorded"
    assert not profiles._profile(STOP).success
    assert trigger.running_state is None
    assert trigger.stage_configs == {}
    assert manager.profiler is None
