"""Fault injection for tests, off unless an environment variable asks for it."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any

from sglang_cdsp.attention.backend import ShardAttention
from sglang_cdsp.engine.tasks import ChunkTask

ENV_VAR = "SGLANG_CDSP_TEST_FAULT"


class InjectedFault(RuntimeError):
    """Raised where a test asked for it."""


@dataclass(frozen=True)
class Fault:
    """An exception in the attention of one instance, for prompts of one length.

    Attributes:
        instance: the instance that fails.
        chunk: the chunk that fails.
        prompt_tokens: length of the prompts that it happens to.
    """

    instance: int
    chunk: int
    prompt_tokens: int

    def hits(self, instance: int, task: ChunkTask, chunk: int) -> bool:
        """Whether this chunk is to fail here."""
        here = (instance, chunk, task.tokens.numel())
        return not task.probe and here == (self.instance, self.chunk, self.prompt_tokens)


class FailingAttention(ShardAttention):
    """Attention that fails at the second layer, in the middle of its partners' exchange."""

    def __init__(self, inner: ShardAttention) -> None:
        self.__dict__.update(inner.__dict__)
        self._calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Attend once, then raise."""
        self._calls += 1
        if self._calls > 1:
            raise InjectedFault("a test asked for this failure")
        return super().forward(*args, **kwargs)


SHAKE_VAR = "SGLANG_CDSP_TEST_SHAKE"


def requested_shake() -> random.Random | None:
    """The order of switches that ``SGLANG_CDSP_TEST_SHAKE=seed`` asks for, if set.

    Coroutines then switch at every point at which they may, to one that is drawn.
    """
    text = os.environ.get(SHAKE_VAR)
    return random.Random(int(text)) if text else None


def requested_fault() -> Fault | None:
    """The fault that ``SGLANG_CDSP_TEST_FAULT=instance:chunk:tokens`` asks for, if set."""
    text = os.environ.get(ENV_VAR)
    return Fault(*(int(part) for part in text.split(":"))) if text else None
