"""What one instance could not do, the pool did not do."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import FlushCacheReqOutput, ProfileReq, ProfileReqOutput

from sglang_cdsp.control.fan_out import execute_profile, flush_cache


def manager(name: str, answers: list[Any]) -> Any:
    async def ask(message: Any) -> list[Any]:
        return answers

    return SimpleNamespace(
        **{name: ask, "auto_create_handle_loop": lambda: None, "mm_processor": None}
    )


def test_a_flush_that_one_instance_refused_failed() -> None:
    good = FlushCacheReqOutput(success=True)
    bad = FlushCacheReqOutput(success=False, message="busy")
    answer = asyncio.run(flush_cache(manager("flush_cache_communicator", [good, bad, bad])))
    assert not answer.success
    assert answer.message == "busy"
    assert asyncio.run(flush_cache(manager("flush_cache_communicator", [good, good]))).success


def test_a_profile_that_one_instance_could_not_make_failed() -> None:
    good = ProfileReqOutput(success=True, message="Succeeded")
    bad = ProfileReqOutput(success=False, message="no disk")
    request = ProfileReq()
    with pytest.raises(RuntimeError, match="no disk"):
        asyncio.run(execute_profile(manager("profile_communicator", [good, bad]), request))
    answers = manager("profile_communicator", [good, good])
    assert asyncio.run(execute_profile(answers, request)).success
