"""A stock server's answers to greedy requests, kept from one run to the next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.servers.families.greedy import generate

KEPT = ("output_top_logprobs", "output_token_logprobs", "input_token_logprobs")
"""What of an answer's ``meta_info`` is compared."""


class Stock:
    """Answers like a stock server does; starts one at the first question that it has no answer to.

    Greedy answers depend on the checkpoint and the request alone, so a form of the pool that is
    tried later, or again, needs no stock server.
    """

    def __init__(
        self, start: Callable[[], AbstractContextManager[str]], kept: Path, identity: str
    ) -> None:
        """Read the answers that there are.

        Args:
            start: starts the server; its URL.
            kept: file with answers of earlier runs, written at the end.
            identity: of the checkpoint: an answer counts for this one alone.
        """
        self._start = start
        self._kept = kept
        self._identity = identity
        self._answers: dict[str, dict[str, Any]] = (
            json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        )
        self._running = ExitStack()
        self._url = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._kept.write_text(json.dumps(self._answers), encoding="utf-8")
        self._running.close()

    def generate(self, tokens: Sequence[int], **fields: Any) -> Mapping[str, Any]:
        """As ``greedy.generate``, with what is compared alone."""
        key = self._key(tokens, fields)
        if key not in self._answers:
            if not self._url:
                self._url = self._running.enter_context(self._start())
            self._answers[key] = compared(generate(self._url, tokens, **fields))
        return self._answers[key]

    def _key(self, tokens: Sequence[int], fields: Mapping[str, Any]) -> str:
        asked = json.dumps([self._identity, list(tokens), fields], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()


def compared(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What of an answer is compared with the pool's."""
    meta = answer["meta_info"]
    return {
        "text": answer["text"],
        "output_ids": answer["output_ids"],
        "meta_info": {name: meta[name] for name in KEPT if name in meta},
    }
