"""SGLang's scheduler as a member of the pool.

It keeps its own event loop, queues and batches; the chunk engine takes its turn in between.
Inside this module ``Scheduler`` becomes this very class once the hook is applied (SGLang rebinds
imported names), hence ``super()`` without arguments everywhere.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq
from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReqInput
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.runtime_context import get_context, get_disagg, get_parallel
from sglang.utils import TypeBasedDispatcher

from sglang_cdsp import hook_table, hooks
from sglang_cdsp.engine.answers import AnswerSender
from sglang_cdsp.engine.assembly import Callbacks, assemble, greet
from sglang_cdsp.engine.cache_events import CacheEvents, hashing_works, take_over_publishing
from sglang_cdsp.engine.cache_walk import walked
from sglang_cdsp.engine.chunk_engine import ChunkEngine
from sglang_cdsp.engine.copying import Copying
from sglang_cdsp.engine.decoding import Decoding
from sglang_cdsp.engine.faults import FaultHook, requested_hook
from sglang_cdsp.engine.heartbeat import keep_beating
from sglang_cdsp.engine.joining import shares_prefixes
from sglang_cdsp.engine.model_check import check_config, check_model
from sglang_cdsp.engine.moving import Moving
from sglang_cdsp.engine.outputs import OutputSender
from sglang_cdsp.engine.profiles import SafeProfiles
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.stock_numbers import Load, StockNumbers
from sglang_cdsp.form import Form, form_of
from sglang_cdsp.parallel.links.choose import pool_links
from sglang_cdsp.parallel.links.nixl_process import prepare_environment
from sglang_cdsp.parallel.links.types import GiveWay
from sglang_cdsp.protocol import last_words
from sglang_cdsp.protocol.addresses import pool_addresses
from sglang_cdsp.protocol.cache_digest import are_shown
from sglang_cdsp.protocol.last_words import one_line
from sglang_cdsp.protocol.lives import this_life
from sglang_cdsp.protocol.messages import (
    Answered,
    CancelOrder,
    CopyEndOrder,
    CopyInOrder,
    CopyOutOrder,
    ForgetOrder,
    GoOrder,
    GrammarOrder,
    InviteOrder,
    LeaveOrder,
    LinkOrder,
    LoadOrder,
    LogprobOrder,
    MovedOrder,
    MoveEndOrder,
    MoveInOrder,
    MoveOutOrder,
    PeerOrder,
    PlanOrder,
    ReleaseOrder,
    RestOrder,
    ResumeOrder,
    RoomOrder,
    StatusOrder,
    StockOrder,
    StopOrder,
    Streamed,
    register_orders,
)
from sglang_cdsp.protocol.progress import ProgressBoard

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import NextBatchPlan, Req

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _ChunkForward:
    """A chunk's forward, as far as SGLang's profiler asks what a batch is."""

    forward_mode: ForwardMode = ForwardMode.EXTEND


class PoolScheduler(Scheduler):
    """One rank of one instance, which prefills, and in one server decodes too."""

    def __init__(self, server_args: Any, *args: Any, **kwargs: Any) -> None:
        register_orders()
        if pool_links(str(server_args.device)) == "nixl":
            # Before anything imports NIXL: UCX reads its variables once.
            prepare_environment()
        self._cdsp: ChunkEngine | None = None
        self._numbers: StockNumbers | None = None
        self._progress: ProgressBoard | None = None
        self._decoding: Decoding | None = None
        self._faults: FaultHook | None = None
        self._cache_events: CacheEvents | None = None
        self._published = False
        self._rank = 0
        self._cdsp_status: dict[str, Any] = {}
        try:
            self._show_signs_of_life()
            self._published = take_over_publishing()
            super().__init__(server_args, *args, **kwargs)
            self._become_a_member()
        except SystemExit as refusal:
            # The controller tells it, as the last line; here it would be buried.
            last_words.leave(pool_addresses().words, str(refusal))
            os._exit(1)
        except Exception as error:
            last_words.leave(pool_addresses().words, one_line(error))
            raise

    def _show_signs_of_life(self) -> None:
        """Count for the controller, and take as many slots as the launcher says."""
        parallel, life = get_parallel(), this_life()
        instance, tp_rank = int(parallel.dp_rank or 0), int(parallel.tp_rank)
        self._rank = instance * int(parallel.tp_size) + tp_rank
        ranks = int(parallel.dp_size) * int(parallel.tp_size)
        self._progress = ProgressBoard(Path(pool_addresses().progress), ranks)
        keep_beating(self._progress, self._rank)
        if life.slots is not None:
            # A next life must hold what the planner takes the seat to hold.
            get_context().override("sglang-cdsp", max_total_tokens=life.slots)

    def _become_a_member(self) -> None:
        """Check what was built, and join the pool; ``SystemExit`` says what cannot be served."""
        hooks.verify(hooks.SCHEDULER_HOOKS)
        check_model(self)
        self.profiler_manager: Any = SafeProfiles(self.profiler_manager)
        self._join_pool()

    def init_ipc_channels(self, port_args: Any) -> None:
        """Stock's; answers to questions to all instances take the way through the controller."""
        super().init_ipc_channels(port_args)
        stock: Any = self.ipc_channels
        self._answers = AnswerSender(stock.send_to_tokenizer)
        self._outputs = OutputSender(stock.send_to_detokenizer)
        one_server = form_of(get_disagg().disaggregation_mode) is Form.ONE_SERVER
        self.ipc_channels: Any = replace(
            stock,
            send_to_tokenizer=self._answers,
            send_to_detokenizer=self._outputs if one_server else stock.send_to_detokenizer,
        )

    def init_model_config(self) -> None:
        """Stock's; a model that the pool cannot serve ends the start before it is loaded."""
        life = this_life()
        self._faults = requested_hook(life.seat, int(get_parallel().tp_rank), life.incarnation)
        if self._faults is not None:
            self._faults.start()
        super().init_model_config()
        check_config(
            self.model_config,
            tp_size=int(get_parallel().tp_size),
            one_server=form_of(get_disagg().disaggregation_mode) is Form.ONE_SERVER,
        )

    def _join_pool(self) -> None:
        """Link up with the other instances and greet the controller."""
        callbacks = Callbacks(
            admit=self._admit_now,
            abort=self._abort_now,
            chunk_starts=self._chunk_starts,
            layer_begins=self._layer_begins,
            interrupted=self._has_work,
            pressed=self._is_pressed,
        )
        parts = assemble(self, callbacks, self._faults)
        self._numbers, self._cdsp, self._decoding = parts.numbers, parts.engine, parts.decoding
        send = parts.reporter.send
        self._answers.tell = lambda kind, payload, failure: send(
            Answered, kind=kind, payload=payload, failure=failure
        )
        self._outputs.tell = lambda payload, told: send(Streamed, payload=payload, parts=told)
        if self._decoding is not None or shares_prefixes(self.tree_cache):
            self._keep_cache_events(parts.reporter)
        if self._decoding is None:
            self._take_longest_prompts_of_pool(int(get_parallel().dp_size))
        greet(self, parts)

    def _keep_cache_events(self, reporter: Reporter) -> None:
        """Tell the controller what this instance has cached."""
        if hashing_works(self.tree_cache):
            self._cache_events = CacheEvents(self.tree_cache, reporter, published=self._published)

    def _take_longest_prompts_of_pool(self, instances: int) -> None:
        """Raise stock's limits: a prompt may be longer than what one instance's KV holds."""
        capacity = instances * int(self.token_to_kv_pool_allocator.available_size())
        self.max_req_len = min(self.model_config.context_len, capacity) - 1
        self.max_req_input_len = self.max_req_len - 5

    # -- intake ---------------------------------------------------------------------------

    def init_request_dispatcher(self) -> None:
        super().init_request_dispatcher()
        self._request_dispatcher += TypeBasedDispatcher(
            [
                (PeerOrder, lambda order: self._engine.on_peer(order)),
                (RoomOrder, lambda order: self._engine.on_room(order)),
                (PlanOrder, lambda order: self._engine.on_plan(order)),
                (RestOrder, lambda order: self._engine.on_rest(order)),
                (ForgetOrder, lambda order: self._engine.on_forget(order)),
                (LogprobOrder, lambda order: self._engine.on_logprobs(order)),
                (StockOrder, lambda order: self._engine.on_stock(order)),
                (ResumeOrder, lambda order: self._engine.on_resume(order)),
                (CancelOrder, lambda order: self._engine.on_cancel(order)),
                (GoOrder, lambda order: self._engine.on_go(order)),
                (StopOrder, lambda order: self._engine.on_stop(order)),
                (LinkOrder, lambda order: self._engine.links.on_link(order)),
                (LeaveOrder, lambda order: self._engine.links.on_leave(order)),
                (InviteOrder, lambda order: self._engine.links.on_invite(order)),
                (ReleaseOrder, lambda order: self._engine.on_release(order)),
                (MoveInOrder, lambda order: self._moves.on_move_in(order)),
                (MoveOutOrder, lambda order: self._moves.on_move_out(order)),
                (MovedOrder, lambda order: self._moves.on_moved(order)),
                (MoveEndOrder, lambda order: self._moves.on_move_end(order)),
                (CopyInOrder, lambda order: self._copies.on_copy_in(order)),
                (CopyOutOrder, lambda order: self._copies.on_copy_out(order)),
                (CopyEndOrder, lambda order: self._copies.on_copy_end(order)),
                (GrammarOrder, lambda order: self._engine.on_grammar(order)),
                (StatusOrder, self._on_status),
                (LoadOrder, self._on_load),
            ]
        )

    @property
    def _engine(self) -> ChunkEngine:
        assert self._cdsp is not None
        return self._cdsp

    @property
    def _moves(self) -> Moving:
        assert self._decoding is not None
        return self._decoding.moving

    @property
    def _copies(self) -> Copying:
        assert self._decoding is not None
        return self._decoding.copying

    def _is_pressed(self) -> bool:
        """Whether the loop has something to read, or SGLang something to prefill."""
        socket = getattr(self, "recv_from_tokenizer", None)
        waiting = isinstance(socket, zmq.Socket) and bool(socket.poll(0))
        return waiting or bool(self.waiting_queue)

    def _has_work(self) -> bool:
        """Whether the loop has something to do while chunks wait for their partners."""
        return self._is_pressed() or (self._decoding is not None and self._decoding.decodes)

    @property
    def works_without_batches(self) -> bool:
        """Whether the next pass of the loop has work although SGLang has no batch."""
        return self._cdsp is not None and self._cdsp.worked

    def _come_on(self) -> None:
        """Count a layer or a batch, so that the controller sees this rank come on."""
        if self._progress is not None:
            self._progress.advance(self._rank)

    def _layer_begins(self, give_way: GiveWay, serial: int) -> None:
        self._come_on()
        if self._progress is not None:
            self._progress.begin_layer(self._rank, serial)
        if self._faults is not None:
            self._faults.layer(give_way)

    def _chunk_starts(self) -> None:
        """What stock does before a batch: a chunk's forward is one that it does not see."""
        if self._numbers is not None:
            self._numbers.publish(at_once=True)
        self.forward_ct += 1
        self.profiler_manager._profile_batch_predicate(_ChunkForward())
        if self.forward_sleep_time is not None:
            time.sleep(self.forward_sleep_time)

    def _on_load(self, order: LoadOrder) -> None:
        assert self._numbers is not None
        self._numbers.elsewhere = Load(0, order.requests, order.tokens)

    def _on_status(self, order: StatusOrder) -> None:
        self._cdsp_status = json.loads(order.status)

    def handle_generate_request(self, recv_req: TokenizedGenerateReqInput, **kwargs: Any) -> None:
        """Stock intake; a one-instance request is kept until its turn in the pool's order."""
        if self._cdsp is not None and self._cdsp.holds_back(recv_req):
            return
        super().handle_generate_request(recv_req, **kwargs)
        if self._cdsp is not None:
            self._cdsp.intake_over(recv_req.rid)

    def abort_request(self, recv_req: AbortReq) -> None:
        """Stock's abort, and requests that stock has not been given yet."""
        self._engine.abort_stock(recv_req.rid or "", everything=recv_req.abort_all)
        self._abort_joining(recv_req)
        super().abort_request(recv_req)

    def _abort_joining(self, recv_req: AbortReq) -> None:
        if self._decoding is not None:
            self._decoding.abort(recv_req.rid or "", everything=recv_req.abort_all)

    def _abort_now(self, rid: str) -> None:
        """SGLang's own abort, of requests that it has or is about to get."""
        abort = AbortReq(rid=rid)
        self._abort_joining(abort)
        super().abort_request(abort)

    def _admit_now(self, recv_req: TokenizedGenerateReqInput) -> None:
        super().handle_generate_request(recv_req)

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        """Stock queueing, except for a home's request, which the chunk engine keeps.

        Nor does SGLang prefill a long request again that it has retracted.
        """
        engine = self._cdsp
        if engine is not None and (engine.gives_back if is_retracted else engine.adopt)(req):
            return
        super()._add_request_to_queue(req, is_retracted=is_retracted)

    # -- the loop -------------------------------------------------------------------------

    def run_event_loop(self) -> None:
        """Stock's loop; what ends it is left for the controller, too."""
        try:
            super().run_event_loop()
        except Exception as error:
            last_words.leave(pool_addresses().words, one_line(error))
            raise

    def _take_turn(self, engine: ChunkEngine) -> None:
        engine.step()
        if self._cache_events is not None:
            self._cache_events.tell()
        if self._faults is not None:
            self._faults.turn(engine.moments)

    def get_next_disagg_prefill_batch_to_run(self, *args: Any, **kwargs: Any) -> NextBatchPlan:
        """Stock's choice of the next batch, after the engine's turn."""
        if self._cdsp is not None:
            self._take_turn(self._cdsp)
        if self._numbers is not None:
            self._numbers.publish()
        return super().get_next_disagg_prefill_batch_to_run(*args, **kwargs)

    def get_next_batch_to_run(self, running_batch: Any, last_batch: Any) -> NextBatchPlan:
        """Stock's choice, after the engine's turn and with whoever has joined meanwhile.

        Both of SGLang's loops of a server that decodes itself call it, once a round.
        """
        if self._decoding is not None and self._cdsp is not None:
            taken = self._decoding.take_results_in()
            self._decoding.pace_chunks(decodes=bool(running_batch.reqs))
            self._take_turn(self._cdsp)
            running_batch = self._decoding.admit(running_batch)
            if self._numbers is not None:
                self._numbers.publish()
            self._decoding.tell_slots()
            if taken:
                self.last_batch = None  # its loop has nothing to look after; ``last_batch`` is here
        return super().get_next_batch_to_run(running_batch=running_batch, last_batch=last_batch)

    def update_running_batch(self, batch: Any) -> Any:
        """Stock's next decode batch, unless chunk tasks hold the slots of the only request."""
        if self._decoding is not None and self._decoding.give_slots(batch):
            return batch
        return super().update_running_batch(batch)

    def run_batch(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if self._cdsp is not None:
            self._cdsp.stamp_start(batch)
            self._come_on()
        return super().run_batch(batch, *args, **kwargs)

    def process_batch_result(self, batch: Any, result: Any, *args: Any, **kwargs: Any) -> Any:
        outcome = super().process_batch_result(batch, result, *args, **kwargs)
        if self._cdsp is not None:
            seconds = self._cdsp.stamp_end(batch)
            if self._decoding is not None and batch.forward_mode.is_decode():
                self._decoding.stepped(seconds)
        return outcome

    def _record_scheduler_state_for_paused_engine(self) -> None:
        """Stock's turn of a paused loop. Writes to decode end meanwhile, and free their slots."""
        if self._cdsp is not None:
            self._cdsp.poll_writes()
        super()._record_scheduler_state_for_paused_engine()

    def is_fully_idle(self, *args: Any, **kwargs: Any) -> bool:
        """Not idle while the engine holds KV slots: stock would call them a leak."""
        joined = self._decoding is None or not self._decoding.waits
        idle = (self._cdsp is None or self._cdsp.idle) and joined
        return idle and super().is_fully_idle(*args, **kwargs)

    def get_internal_state(self, recv_req: Any) -> Any:
        """Stock's state, with CDSP's under ``"cdsp"``."""
        output = super().get_internal_state(recv_req)
        output.internal_state["cdsp"] = {
            "hooks": hook_table.live(hooks.SCHEDULER_HOOKS),
            "free_tokens": int(self.token_to_kv_pool_allocator.available_size()),
            "cached_tokens": int(self.tree_cache.evictable_size()),
            **self._engine.snapshot(),
            **self._cdsp_status,
        }
        if are_shown():
            cache = walked(self.tree_cache, self.token_to_kv_pool_allocator)
            output.internal_state["cdsp"]["cache"] = cache
        return output
