"""What becomes of prompts near the size of decode's KV cache: stock's queue on real allocators."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from sglang.srt.disaggregation import decode
from sglang.srt.disaggregation.utils import FAKE_BOOTSTRAP_HOST, TransferBackend
from sglang.srt.mem_cache.allocator.hisparse import HiSparseTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

CAPACITY, RESERVED, PAGE, WINDOW = 256, 60, 8, 32
CACHED = 120
OUTPUT = 4
STATED = CAPACITY - 40
Form = tuple[Any, bool, dict[str, Any]]


class SlidingPool(SWAKVPool):
    """A pool of full and sliding-window layers, without memory."""

    def __init__(self) -> None: ...

    def register_mapping(self, mapping: Any) -> None: ...


class Queue(decode.DecodePreallocQueue):
    """The stock queue up to the allocation: no transfer engine, no kernels, no messages."""

    def _init_kv_manager(self) -> Any:
        return SimpleNamespace(kv_args=SimpleNamespace(state_types=[]))

    def _pre_alloc(self, req: Any, *_: Any) -> torch.Tensor:
        req.kv.req_pool_idx = 0
        return torch.empty(0)

    def _send_kv_metadata(self, *_: Any, **__: Any) -> None: ...


def run() -> dict[str, Any]:
    """By form of the cache: prompt lengths refused, admitted and stuck, as ``[first, last]``."""
    return {
        "forms": {name: _sweep(form) for name, form in _forms().items()},
        "cached prefix": _sweep((_paged(), True, {}), cached=CACHED),
        "nothing reserved": _sweep((_token(), False, {}), reserved=0),
        "behind": _behind(),
        "grown": {way: _grown(**{way: True}) for way in ("is_retracted", "is_rebootstrap")},
        "message": _message(),
    }


def _forms() -> dict[str, Form]:
    """Allocator, decode radix cache or not, and what the scheduler says besides.

    "lent" stands for pools that share memory: full attention may get more than is stated.
    """
    hisparse = HiSparseTokenToKVPoolAllocator(
        CAPACITY, PAGE, torch.float32, "cpu", mock.MagicMock(), False, 2
    )
    sliding = SWATokenToKVPoolAllocator(
        CAPACITY, CAPACITY // 2, PAGE, torch.float32, "cpu", SlidingPool(), False
    )
    coordinator = mock.MagicMock(padded_buffer_size=1)
    return {
        "tokens": (_token(), False, {}),
        "pages": (_paged(), False, {}),
        "radix tokens": (_token(), True, {}),
        "radix pages": (_paged(), True, {}),
        "hisparse": (
            hisparse,
            False,
            {"enable_hisparse": True, "hisparse_coordinator": coordinator},
        ),
        "sliding window": (sliding, False, {"hybrid": True}),
        "lent": (_paged(), False, {"stated": STATED}),
    }


def _token() -> TokenToKVPoolAllocator:
    return TokenToKVPoolAllocator(CAPACITY, torch.float32, "cpu", mock.MagicMock(), False)


def _paged() -> PagedTokenToKVPoolAllocator:
    return PagedTokenToKVPoolAllocator(
        CAPACITY, PAGE, torch.float32, "cpu", mock.MagicMock(), False
    )


def _sweep(form: Form, cached: int = 0, reserved: int = RESERVED) -> dict[str, list[int]]:
    """Each length on its own, in a cache that holds nothing but ``cached`` tokens to reuse."""
    lengths: dict[str, list[int]] = {}
    matched = 0
    with _queue(form, reserved) as queue:
        size, allocator = queue.max_total_num_tokens, queue.token_to_kv_pool_allocator
        if cached:
            key = RadixKey(token_ids=list(range(cached)))
            queue.tree_cache.insert(InsertParams(key=key, value=allocator.alloc(cached)))
        for length in range(1, size + 3):
            req = _request(length, allocator)
            lengths.setdefault(_outcome(queue, req), []).append(length)
            matched = max(matched, req.num_matched_prefix_tokens)
            if cached:  # nothing of it was lost, and nothing stays locked
                assert queue.tree_cache.evictable_size() == cached
                assert allocator.available_size() == size - cached
    assert matched == cached
    for found in lengths.values():
        assert found == list(range(found[0], found[-1] + 1))
    return {name: [found[0], found[-1]] for name, found in lengths.items()}


def _outcome(queue: Queue, req: Any) -> str:
    queue.add(req)
    if not queue.queue:
        assert req.finished_reason.status_code == 400
        return "refused"
    admitted, _ = queue.pop_preallocated()
    queue.queue.clear()
    if not admitted:
        return "stuck"
    if admitted[0].prefix_match is not None:
        queue.tree_cache.dec_lock_ref(req.last_node, req.lock_receipt)
    return "admitted"


def _behind() -> bool:
    """Whether a short prompt is admitted after one that only the output reserve keeps out."""
    with _queue((_token(), False, {})) as queue:
        short = _request(1, _token())
        queue.add(_request(CAPACITY - RESERVED + 1, _token()))
        queue.add(short)
        admitted, _ = queue.pop_preallocated()
    return [entry.req for entry in admitted] == [short]


def _grown(is_retracted: bool = False, is_rebootstrap: bool = False) -> str:
    """What becomes of a request that was admitted and has grown over the limit since."""
    with _queue((_token(), False, {})) as queue:
        req = _request(CAPACITY - RESERVED, _token())
        req.output_ids = [7] * 8
        # As ``reset_for_retract`` and a pause leave them.
        req.is_retracted = True
        req.pd_rebootstrap_in_progress = is_rebootstrap
        queue.add(req, is_retracted=is_retracted, is_rebootstrap=is_rebootstrap)
        if req in queue.retracted_queue or any(entry.req is req for entry in queue.queue):
            return "waits"
    return "refused"


def _message() -> str:
    with _queue((_token(), False, {})) as queue:
        req = _request(CAPACITY - RESERVED + 1, _token())
        queue.add(req)
    return req.finished_reason.message if req.finished_reason else ""


@contextmanager
def _queue(form: Form, reserved: int = RESERVED) -> Iterator[Queue]:
    allocator, radix, said = form
    disagg = SimpleNamespace(
        disaggregation_decode_enable_radix_cache=radix,
        disaggregation_decode_host_receive_threshold=0,
        disaggregation_enable_kv_checksum=False,
    )
    parallel = SimpleNamespace(tp_rank=0, tp_size=1, dp_size=1, pp_rank=0, pp_size=1)
    with mock.patch.multiple(
        decode,
        get_disagg=lambda: disagg,
        get_parallel=lambda: parallel,
        get_memory=lambda: SimpleNamespace(disable_radix_cache=not radix),
        poll_and_all_reduce=lambda receivers, _: [receiver.poll() for receiver in receivers],
        dsv41_dspark_needs_rebootstrap=lambda _: False,
    ):
        yield Queue(
            req_to_token_pool=SimpleNamespace(
                available_size=lambda: 1, req_to_token=torch.zeros(1, 4 * CAPACITY)
            ),
            token_to_kv_pool_allocator=allocator,
            draft_token_to_kv_pool=None,
            req_to_metadata_buffer_idx_allocator=SimpleNamespace(available_size=lambda: 1),
            metadata_buffers=None,
            scheduler=_scheduler(allocator, **said),
            transfer_queue=SimpleNamespace(queue=[], enable_staging=False),
            tree_cache=RadixCache.create_simulated(
                mock_allocator=allocator, page_size=allocator.page_size
            ),
            gloo_group=None,
            gpu_id=0,
            bootstrap_port=1,
            max_total_num_tokens=said.get("stated", allocator.size_full),
            num_reserved_decode_tokens=reserved,
            transfer_backend=TransferBackend.FAKE,
        )


def _scheduler(allocator: Any, hybrid: bool = False, **said: Any) -> Any:
    runner = SimpleNamespace(
        max_token_pool_size=allocator.size_full,
        swa_max_total_num_tokens=getattr(allocator, "size_swa", None),
    )
    says = {
        "enable_hisparse": False,
        "enable_priority_scheduling": False,
        "enable_lora": False,
        "enable_decode_hicache": False,
        "last_batch": None,
        "waiting_queue": [],
        "sliding_window_size": WINDOW,
        **said,
    }
    scheduler = mock.MagicMock(**says)
    scheduler.running_batch.reqs = []
    scheduler.tp_worker = SimpleNamespace(is_hybrid_swa=hybrid, model_runner=runner)
    return scheduler


def _request(length: int, allocator: Any) -> Any:
    """A request of ``length`` prompt tokens, its output clipped as the scheduler does."""
    output = allocator.max_new_tokens_for_memory(
        length,
        OUTPUT,
        token_capacity=allocator.size_full,
        sliding_window_size=WINDOW,
        chunk_size=None,
    )
    return SimpleNamespace(
        rid=f"of-{length}",
        origin_input_ids=list(range(length)),
        output_ids=[],
        sampling_params=SimpleNamespace(max_new_tokens=output),
        bootstrap_host=FAKE_BOOTSTRAP_HOST,
        bootstrap_port=1,
        bootstrap_room=length,
        finished_reason=None,
        to_finish=None,
        return_logprob=False,
        is_retracted=False,
        swa_prefix_lock_released=False,
        extra_key=None,
        cache_salt=None,
        num_matched_prefix_tokens=0,
        time_stats=mock.MagicMock(),
        kv=mock.MagicMock(),
        _compute_max_prefix_len=lambda tokens: tokens - 1,
    )
