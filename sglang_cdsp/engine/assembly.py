"""How one rank's chunk engine is put together in SGLang's scheduler, and how it greets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from sglang.srt.runtime_context import get_disagg, get_parallel

from sglang_cdsp.args import active_args
from sglang_cdsp.engine.activations import measured_shard
from sglang_cdsp.engine.agreement import Agreement
from sglang_cdsp.engine.chunk_engine import ChunkEngine
from sglang_cdsp.engine.chunk_work import ChunkWork
from sglang_cdsp.engine.copying import Copying
from sglang_cdsp.engine.coroutines import Coroutines
from sglang_cdsp.engine.decoding import Decoding
from sglang_cdsp.engine.device import device_name, events_of
from sglang_cdsp.engine.faults import FaultHook, requested_shake
from sglang_cdsp.engine.forward_state import ForwardSurroundings
from sglang_cdsp.engine.joining import Joining, SlotReports, make_room, shares_prefixes
from sglang_cdsp.engine.kept import keep_in
from sglang_cdsp.engine.meters import DeviceMeter
from sglang_cdsp.engine.moving import Moving
from sglang_cdsp.engine.prefixes import match_in
from sglang_cdsp.engine.ranks import ranks_of
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.shard_runner import ShardRunner
from sglang_cdsp.engine.stock import RankScheduler
from sglang_cdsp.engine.stock_numbers import StockNumbers
from sglang_cdsp.form import Form, form_of
from sglang_cdsp.parallel.links.choose import make_links, pool_links
from sglang_cdsp.parallel.links.lanes import LinkHub
from sglang_cdsp.parallel.links.slow import SlowLinks
from sglang_cdsp.parallel.links.types import GiveWay, Links, LinkShape
from sglang_cdsp.protocol.addresses import pool_addresses
from sglang_cdsp.protocol.limits import LANES
from sglang_cdsp.protocol.lives import this_life
from sglang_cdsp.protocol.messages import Hello
from sglang_cdsp.transfer.manager import PoolKVManager

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput

SLOT_BYTES = {"cpu": 16 << 20, "cuda": 8 << 20}
"""Bytes of a slot of the links, by device; a block of up to two of them is sent at once.

Host memory is touched as it is used. On CUDA every partner takes 256 MiB: LANES x 2 slots in both
directions.
"""

STRETCH_S = 0.02
"""Longest time between two turns of SGLang's loop, as far as layers allow."""


@dataclass(frozen=True)
class Callbacks:
    """What the parts of a rank ask of SGLang's scheduler.

    Attributes:
        admit: hands a one-instance request to SGLang's own intake.
        abort: ends the requests that SGLang has whose id begins with a text.
        chunk_starts: hears of each forward.
        layer_begins: hears of each layer of a chunk, with what lets others go on and the serial of
            its order.
        interrupted: whether the loop has something to do while all chunks wait.
        pressed: the same but for decode.
    """

    admit: Callable[[TokenizedGenerateReqInput], None]
    abort: Callable[[str], None]
    chunk_starts: Callable[[], None]
    layer_begins: Callable[[GiveWay, int], None]
    interrupted: Callable[[], bool]
    pressed: Callable[[], bool]


@dataclass(frozen=True)
class RankParts:
    """The parts of one rank of the pool.

    Attributes:
        manager: takes KV to decode servers; None in one server.
        decoding: what is done around SGLang's decode batches; None on a prefill server.
    """

    reporter: Reporter
    manager: PoolKVManager | None
    hub: LinkHub
    numbers: StockNumbers
    engine: ChunkEngine
    decoding: Decoding | None


def assemble(scheduler: RankScheduler, callbacks: Callbacks, faults: FaultHook | None) -> RankParts:
    """Make the parts of this process's rank; nobody is told of it yet.

    Args:
        scheduler: SGLang's, with its model and its KV pool; a prefill server's never joins anybody.
        faults: what tests order, None outside of them.
    """
    parallel = get_parallel()
    instance, tp_rank = int(parallel.dp_rank or 0), int(parallel.tp_rank)
    one_server = form_of(get_disagg().disaggregation_mode) is Form.ONE_SERVER
    manager = None if one_server else scheduler.disagg_prefill_bootstrap_queue.kv_manager
    assert one_server or isinstance(manager, PoolKVManager)
    joining = Joining(scheduler) if one_server else None
    reuses = shares_prefixes(scheduler.tree_cache)
    reporter = Reporter(pool_addresses().reports, instance, tp_rank, this_life().incarnation)
    hub = _hub(scheduler.device, instance, faults, lambda ready: coroutines.give_way(ready))
    events = events_of(scheduler.device)
    coroutines = Coroutines(
        surroundings=ForwardSurroundings(scheduler.device),
        ranks=Agreement(scheduler.tp_cpu_group, int(parallel.tp_size)),
        leads=reporter.leads,
        stretch_s=STRETCH_S,
        poll=hub.poll,
        interrupted=callbacks.interrupted,
        pressed=callbacks.pressed,
        expected=lambda: engine.awaits,
        meter=DeviceMeter(events) if events is not None else None,
        shake=requested_shake(),
    )
    ranks = ranks_of(tp_rank, int(parallel.tp_size))
    numbers = StockNumbers(scheduler, lambda: engine.load)
    runner = ShardRunner(
        scheduler,
        hub,
        instance,
        coroutines.give_way,
        lambda serial: callbacks.layer_begins(coroutines.give_way, serial),
        lambda: decoding is not None and decoding.decodes,
        ranks,
    )
    moving = copying = None
    match = match_in(scheduler.tree_cache) if one_server or reuses else None
    if joining is not None:
        assert match is not None
        copying = Copying(
            scheduler=scheduler,
            reporter=reporter,
            coroutines=coroutines,
            hub=hub,
            layers=runner.layers,
            match=match,
            ranks=ranks,
        )
        moving = Moving(
            scheduler=scheduler,
            reporter=reporter,
            joining=joining,
            coroutines=coroutines,
            hub=hub,
            layers=runner.layers,
            match=match,
            ranks=ranks,
        )
    work = ChunkWork(
        scheduler,
        manager,
        reporter,
        runner,
        coroutines,
        callbacks.chunk_starts,
        numbers.count_prefill,
        make_room=partial(make_room, scheduler) if one_server or reuses else None,
        match=match,
        copying=copying.comes if copying is not None else lambda copy: False,
        keep=keep_in(scheduler.req_to_token_pool, scheduler.tree_cache) if reuses else None,
    )
    engine = ChunkEngine(
        scheduler=scheduler,
        manager=manager,
        reporter=reporter,
        work=work,
        coroutines=coroutines,
        hub=hub,
        admit=callbacks.admit,
        abort=callbacks.abort,
        joining=joining,
        moving=moving,
        copying=copying,
        stock_tokens=_stock_tokens(),
    )
    decoding = None
    if joining is not None and moving is not None and copying is not None:
        capacity = int(scheduler.token_to_kv_pool_allocator.available_size())
        slots = SlotReports(scheduler, reporter, capacity)
        decoding = Decoding(scheduler, engine, coroutines, joining, moving, copying, slots)
    return RankParts(reporter, manager, hub, numbers, engine, decoding)


def _stock_tokens() -> int:
    """The longest prompt that SGLang itself prefills, ``--cdsp-stock-tokens``."""
    args = active_args()
    assert args is not None
    return args.stock_tokens


def _hub(device: str, instance: int, faults: FaultHook | None, give_way: GiveWay) -> LinkHub:
    """This rank's links to the same rank of the other instances."""
    kind = torch.device(device).type
    shape = LinkShape(lanes=LANES, depth=2, slot_bytes=SLOT_BYTES.get(kind, 8 << 20))
    links: Links = make_links(
        pool_links(device), instance, this_life().incarnation, shape, torch.device(device)
    )
    if faults is not None:
        links = SlowLinks(links, faults.delay_s)
    return LinkHub(links, shape, give_way=give_way)


def greet(scheduler: RankScheduler, parts: RankParts) -> None:
    """Tell the controller what this rank is and how it is reached.

    Args:
        scheduler: SGLang's, whose limits are those that this rank keeps to.
        parts: of the rank.
    """
    parallel, allocator = get_parallel(), scheduler.token_to_kv_pool_allocator
    instance, capacity = int(parallel.dp_rank or 0), int(allocator.available_size())
    others = (seat for seat in range(int(parallel.dp_size)) if seat != instance)
    parts.reporter.send(
        Hello,
        invitations={seat: parts.hub.invite(seat) for seat in others},
        kv_capacity=capacity,
        page_size=int(allocator.page_size),
        max_input_tokens=scheduler.max_req_input_len,
        vocab_size=int(scheduler.model_config.vocab_size),
        layers=int(scheduler.model_config.num_hidden_layers),
        device=device_name(scheduler.device),
        dtype=str(scheduler.model_config.dtype).removeprefix("torch."),
        kv_cache_dtype="" if parts.manager is None else parts.manager.kv_cache_dtype_str,
        max_shard_tokens=measured_shard(scheduler, int(parallel.tp_size), capacity),
        links=pool_links(scheduler.device),
        kv_token_bytes=parts.decoding.copying.token_bytes if parts.decoding is not None else 0,
    )
