"""Which requests, in which bootstrap rooms, the tokenizer manager sends for ``n`` samples."""

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest import mock

from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.tokenizer_manager import TokenizerManager

ROOM = 2**63 - 1  # the largest that routers draw
FIRST_IDS = [[1, 2, 3], [4, 5, 6]]


def run() -> dict[str, Any]:
    """By mode: ``[prompt, room, tokens to make]`` of every request that is sent, in order."""
    one: dict[str, Any] = {"input_ids": FIRST_IDS[0], "bootstrap_room": ROOM}
    batch: dict[str, Any] = {"input_ids": FIRST_IDS, "bootstrap_room": [40, 41]}
    rids = {**batch, "rid": ["a", "b"]}
    roomless = {"input_ids": FIRST_IDS[0], "bootstrap_room": None}
    prefill, decode, null = (DisaggregationMode(m) for m in ("prefill", "decode", "null"))
    return {
        "one": {"prefill": _sent(one, 3, prefill), "decode": _sent(one, 3, decode)},
        "batch": {"prefill": _sent(batch, 2, prefill), "decode": _sent(batch, 2, decode)},
        "rids": _sent(rids, 2, prefill),
        "unified": _sent(roomless, 2, null),
        "single_rooms": [_rooms(**one), _rooms(**batch), _rooms(FIRST_IDS, 9)],
    }


def _rooms(input_ids: list[Any], bootstrap_room: Any) -> Any:
    request = _request({"input_ids": input_ids, "bootstrap_room": bootstrap_room}, 1)
    return request.bootstrap_room


def _request(fields: dict[str, Any], n: int) -> GenerateReqInput:
    request = GenerateReqInput(sampling_params={"n": n, "max_new_tokens": 4}, **fields)
    request.normalize_batch_and_arguments()
    return request


class Manager(TokenizerManager):
    """The tokenizer manager's batch handling; a stub answers every request."""

    def __init__(self, mode: DisaggregationMode) -> None:
        self.disaggregation_mode = mode
        self.rid_to_state: dict[str, Any] = {}
        self.sent: list[list[Any]] = []

    async def _tokenize_one_request(self, obj: Any) -> Any:
        return SimpleNamespace(
            rid=obj.rid,
            input_ids=obj.input_ids,
            bootstrap_room=obj.bootstrap_room,
            sampling_params=SimpleNamespace(max_new_tokens=4),
            mm_inputs=None,
        )

    def _init_req_state(self, obj: Any, request: Any = None) -> None:
        self.rid_to_state[obj.rid] = mock.MagicMock()

    async def _send_one_request(self, obj: Any) -> None:
        self.sent.append([obj.input_ids, obj.bootstrap_room, obj.sampling_params.max_new_tokens])

    async def _wait_one_response(self, obj: Any, request: Any = None) -> Any:
        yield {"meta_info": {"id": obj.rid}}


def _sent(fields: dict[str, Any], n: int, mode: DisaggregationMode) -> list[list[Any]]:
    manager = Manager(mode)
    request = _request(fields, n)
    for i in range(request.batch_size):
        manager._init_req_state(request[i])

    async def drain() -> None:
        async for _ in manager._handle_batch_request(request, None):
            pass

    asyncio.run(drain())
    return manager.sent
