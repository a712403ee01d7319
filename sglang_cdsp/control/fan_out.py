"""Answers of all instances as the answer of one replica.

SGLang asks every instance for a flush or a profile and reports what the first to answer says. Where
one instance of a pool could not do what was asked, the pool did not do it.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.tokenizer_control_mixin import TokenizerControlMixin

# Taken before ours stand in their place.
STOCK_FLUSH = TokenizerControlMixin.flush_cache
STOCK_PROFILE = TokenizerControlMixin._execute_profile


def merged(results: list[Any]) -> Any:
    """The answer of one replica: a failure with the words of all failures, else the first."""
    failed = [result for result in results if not result.success]
    if not failed:
        return results[0]
    failed[0].message = " | ".join(dict.fromkeys(r.message for r in failed if r.message))
    return failed[0]


class OneReplica:
    """A tokenizer manager that asks with one of its communicators and gets one answer."""

    def __init__(self, manager: Any, communicator: str) -> None:
        self._manager = manager
        self._communicator = communicator

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._manager, name)
        if name != self._communicator:
            return found

        async def ask(message: Any) -> list[Any]:
            return [merged(await found(message))]

        return ask


async def flush_cache(manager: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of ``TokenizerControlMixin.flush_cache``; to a ``FlushCacheReqOutput``."""
    return await STOCK_FLUSH(OneReplica(manager, "flush_cache_communicator"), *args, **kwargs)


async def execute_profile(manager: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of ``TokenizerControlMixin._execute_profile``; to a ``ProfileReqOutput``.

    Raises:
        RuntimeError: an instance could not do it; says why.
    """
    return await STOCK_PROFILE(OneReplica(manager, "profile_communicator"), *args, **kwargs)
