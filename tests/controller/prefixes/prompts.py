"""Requests of one server whose prompts are given token by token."""

from __future__ import annotations

from array import array
from typing import Any

from sglang_cdsp.controller.request import PoolRequest
from tests.controller.fake_requests import request as tokenized


def request(ids: list[int], **more: Any) -> PoolRequest:
    """A request with that prompt; ``more``: its ``rid``, fields of SGLang's request."""
    rid = str(more.pop("rid", "r"))
    raw = tokenized(input_ids=array("q", ids), **more)
    return PoolRequest(rid, raw, len(ids), 0.0, decodes=True, output_tokens=8)
