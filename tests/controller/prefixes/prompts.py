"""Requests of one server whose prompts are given token by token."""

from __future__ import annotations

from array import array
from typing import Any

from sglang_cdsp.controller.request import PoolRequest
from tests.controller.fake_requests import request as tokenized


def request(ids: list[int], **more: Any) -> PoolRequest:
    """A request with that prompt; ``more``: fields of SGLang's request."""
    raw = tokenized(input_ids=array("q", ids), **more)
    return PoolRequest("r", raw, len(ids), 0.0, decodes=True, output_tokens=8)
