"""The pool controller: SGLang's data-parallel controller with a planner in it.

It owns no tensors. It polls four kinds of sockets (requests from the tokenizer, reports from the
schedulers, decode's messages) and drives the :class:`Lifecycle`; it never spins.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Any

import psutil
import zmq
from sglang.srt.disaggregation.utils import FAKE_BOOTSTRAP_HOST
from sglang.srt.environ import envs
from sglang.srt.managers.data_parallel_controller import DataParallelController
from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenizedGenerateReqInput,
    TokenizedGenerateReqInput,
    sock_recv,
    sock_send,
)
from sglang.srt.managers.utils import is_health_check_generate_req
from sglang.srt.runtime_context import get_disagg, get_parallel
from sglang.srt.utils.network import get_local_ip_auto, get_zmq_socket
from torch._C._distributed_c10d import TCPStore

from sglang_cdsp.args import CdspArgs, CdspConfigError, active_args
from sglang_cdsp.checks import check_transfer_backend
from sglang_cdsp.controller.admission import Admission
from sglang_cdsp.controller.calibration import calibrate, probe_runner
from sglang_cdsp.controller.decode.endpoint import DecodeEndpoint
from sglang_cdsp.controller.decode.rooms import Rooms
from sglang_cdsp.controller.decode.servers import DecodeServers
from sglang_cdsp.controller.decode.wire import PeerMessage, RoomAbort, RoomPages, wire_format
from sglang_cdsp.controller.dispatcher import Dispatcher
from sglang_cdsp.controller.inbox import read_reports
from sglang_cdsp.controller.ledger import RESERVE_TOKENS, InstanceLedger
from sglang_cdsp.controller.lifecycle import Lifecycle
from sglang_cdsp.controller.plan_log import PlanLog
from sglang_cdsp.controller.planning import Planning, ledger_snapshot, make_planning
from sglang_cdsp.controller.request import Phase, PoolRequest
from sglang_cdsp.controller.request_checks import grammar_order, unsupported
from sglang_cdsp.controller.startup import (
    PoolIncompleteError,
    await_hellos,
    bootstrap_route,
    bootstrap_row,
    default_sp_sizes,
    quiet_ports,
)
from sglang_cdsp.planner.forced import PARAMETER
from sglang_cdsp.planner.latency import LatencyModel, builtin_model
from sglang_cdsp.protocol import messages
from sglang_cdsp.protocol.addresses import PoolAddresses, publish_addresses
from sglang_cdsp.protocol.admin import AdminServer

logger = logging.getLogger(__name__)

POLL_MS = 100


class PoolController(DataParallelController):
    """Takes the place of SGLang's controller; see the module's text."""

    def __init__(self, server_args: Any, port_args: Any, *more: Any) -> None:
        """``more`` is SGLang's own: how to run a scheduler, and in 0.5.23 schedulers that run."""
        args = active_args()
        assert args is not None
        self._cdsp: CdspArgs = args
        try:
            backend = get_disagg().disaggregation_transfer_backend
            check_transfer_backend(backend)
        except CdspConfigError as error:
            self._give_up(str(error))
        messages.register_orders()
        self._host = get_local_ip_auto()
        self._zmq = zmq.Context()
        self._reports: zmq.Socket[bytes] = self._zmq.socket(zmq.PULL)
        self._reports.setsockopt(zmq.RCVHWM, 0)
        port = self._reports.bind_to_random_port("tcp://127.0.0.1")
        self._store = TCPStore(
            self._host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=300)
        )
        publish_addresses(
            PoolAddresses(f"tcp://127.0.0.1:{port}", self._host, int(self._store.port))
        )
        self._rendezvous_ports = quiet_ports(int(get_parallel().dp_size))
        super().__init__(server_args, port_args, *more)
        self._tp_size = int(get_parallel().tp_size)
        self._contact = DecodeEndpoint(self._tp_size, self._host, wire_format(backend))
        self._tokenizer = get_zmq_socket(self._zmq, zmq.PUSH, port_args.tokenizer_ipc_name, False)
        self._poller = zmq.Poller()
        for socket in (self._reports, self.recv_from_tokenizer, *self._contact.sockets):
            self._poller.register(socket, zmq.POLLIN)
        self._admin = AdminServer(
            self._zmq, args.admin, args.admin_key, status=self._status, update=self._update
        )
        self._poller.register(self._admin.socket, zmq.POLLIN)
        self._log = PlanLog(args.plan_log)
        self._rooms = Rooms(self._tp_size)
        hello = self._meet()
        self._decode = DecodeServers(
            page_size=hello.page_size,
            reserved_tokens=int(get_disagg().num_reserved_decode_tokens),
            timeout_s=float(envs.SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT.get()),
            stated_tokens=args.decode_max_total_tokens,
        )
        self.max_req_input_len = hello.max_input_tokens
        self._start_planning(hello)
        self._contact.register(bootstrap_route(), bootstrap_row(hello, self._tp_size))

    # -- start ----------------------------------------------------------------------------

    def launch_tensor_parallel_group_thread(
        self, server_args: Any, port_args: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Stock's launch of one instance, with a rendezvous port that nobody takes meanwhile.

        Stock picks one among the ephemeral ports and lets go of it until the instance has
        imported everything; any outgoing connection of the machine may get it in between.
        """
        with self.env_lock:
            port_args.nccl_port = self._rendezvous_ports.pop()
        super().launch_tensor_parallel_group_thread(server_args, port_args, *args, **kwargs)

    def _meet(self) -> messages.Hello:
        size = int(get_parallel().dp_size)
        try:
            hellos = await_hellos(self._reports, size, self._tp_size)
        except PoolIncompleteError as error:
            self._give_up(str(error))
            raise
        first = hellos[(0, 0)]
        self._ledger = InstanceLedger(
            capacity=tuple(hellos[(i, 0)].kv_capacity for i in range(size)),
            page_size=first.page_size,
            instances_per_node=self._cdsp.instances_per_node or size,
        )
        return first

    def _start_planning(self, hello: messages.Hello) -> None:
        """Find the latency model, then the planner; a bad option ends the server."""
        instances = int(get_parallel().dp_size)
        sizes = self._cdsp.sp_sizes or default_sp_sizes(instances)
        try:
            if self._cdsp.latency_model is not None:
                model = LatencyModel.load(self._cdsp.latency_model)
            else:
                model = self._measure(tuple(sorted({*sizes, instances})), hello)
            self._planning = make_planning(self._cdsp, model, sizes, hello.page_size)
        except ValueError as error:
            self._give_up(str(error))
            raise
        self._lifecycle = self._make_lifecycle(self._planning, hello)
        self._tell_status()

    def _make_lifecycle(self, planning: Planning, hello: messages.Hello) -> Lifecycle:
        effects = Dispatcher(
            workers=self.workers,
            contact=self._contact,
            decode=self._decode,
            rooms=self._rooms,
            answer=self._answer,
            ended=self._log.write,
        )
        return Lifecycle(
            ledger=self._ledger,
            planning=planning,
            rooms=self._rooms,
            effects=effects,
            admission=Admission(
                policy=planning.policy,
                view=lambda: self._ledger.view(time.monotonic()),
                page_size=hello.page_size,
                max_input_tokens=hello.max_input_tokens,
                allow_request_plans=self._cdsp.allow_request_plans,
                decode=self._decode,
                unsupported=partial(unsupported, vocab_size=hello.vocab_size),
            ),
            tp_size=self._tp_size,
            clock=time.monotonic,
            decode=self._decode,
        )

    def _status(self) -> dict[str, Any]:
        """What ``GET /cdsp/status`` answers."""
        now_s = time.monotonic()
        return {
            **self._planning.snapshot(now_s),
            "decode": {
                "ranks": len(self._decode.ranks),
                "longest_prompt": self._decode.longest_prompt,
            },
            "pool": ledger_snapshot(self._ledger, now_s),
            "requests": len(self._lifecycle.requests),
        }

    def _update(self, body: Any) -> None:
        """What ``POST /cdsp/update`` changes; ``ValueError`` leaves everything as it was."""
        self._planning.regulator.update(body)
        self._lifecycle.arrivals.sizes_changed()
        self._tell_status()

    def _tell_status(self) -> None:
        """Let ``/server_info``, which asks the schedulers, show the planner too."""
        status = self._planning.snapshot(time.monotonic())
        self.send_control_message(messages.StatusOrder(status=json.dumps(status)))

    def _measure(self, sizes: tuple[int, ...], hello: messages.Hello) -> LatencyModel:
        """Run probes on the pool before anybody is served."""
        logger.info("no --cdsp-latency-model: measuring SP sizes %s on this pool", list(sizes))
        stand_in = make_planning(CdspArgs(), builtin_model(), (1,), hello.page_size)
        model = calibrate(
            sizes,
            min(hello.max_input_tokens, min(self._ledger.capacity) - RESERVE_TOKENS),
            hello.page_size,
            probe_runner(self._make_lifecycle(stand_in, hello), self._reports),
            model=str(self.server_args.model_path),
            device=str(self.server_args.device),
        )
        logger.info("measured latency model: %s", json.dumps(model.to_json()["sp"]))
        return model

    def _give_up(self, reason: str) -> None:
        logger.error("sglang-cdsp: %s", reason)
        parent = psutil.Process().parent()
        if parent is not None:
            parent.send_signal(signal.SIGQUIT)
        os._exit(1)

    # -- requests -------------------------------------------------------------------------

    def init_dispatcher(self) -> None:
        super().init_dispatcher()
        mapping = self._request_dispatcher._mapping
        mapping[TokenizedGenerateReqInput] = self.on_request
        mapping[BatchTokenizedGenerateReqInput] = self._on_batch
        mapping[AbortReq] = self._on_abort

    def _on_batch(self, batch: BatchTokenizedGenerateReqInput) -> None:
        for request in batch:
            self.on_request(request)

    def on_request(self, tokenized: TokenizedGenerateReqInput) -> None:
        """A request from the tokenizer; SGLang's own checks take the stock way."""
        if is_health_check_generate_req(tokenized):
            self.round_robin_scheduler(tokenized)
            return
        fake = tokenized.bootstrap_host == FAKE_BOOTSTRAP_HOST
        if tokenized.routed_dp_rank is not None and (fake or tokenized.bootstrap_room is None):
            self.dispatching_with_trace(tokenized)
            return
        request = PoolRequest(
            rid=str(tokenized.rid),
            tokenized=tokenized,
            tokens=len(tokenized.input_ids or ()),
            arrival_s=time.monotonic(),
            room=None if fake else tokenized.bootstrap_room,
        )
        custom = tokenized.sampling_params.custom_params or {}
        self._lifecycle.arrivals.submit(request, custom.get(PARAMETER))
        order = grammar_order(tokenized)
        if order is not None and request.phase is not Phase.ENDED:
            # Equal grammars to the same instance: its backend has compiled them already.
            worker = self.workers[hash(order.text) % len(self.workers)]
            assert worker is not None
            sock_send(worker, order)

    def _on_abort(self, request: AbortReq) -> None:
        reason = request.abort_message or "aborted by the client"
        named = self._lifecycle.matching(str(request.rid), everything=request.abort_all)
        for pool_request in named:
            self._lifecycle.abort(pool_request, reason)
        # SGLang's own requests (warm-up, health checks) are not in the pool's books.
        self.send_control_message(request)

    def _answer(self, request: PoolRequest, status: HTTPStatus, message: str) -> None:
        reason = {"type": "abort", "message": message, "status_code": int(status)}
        worker = getattr(request.tokenized, "http_worker_ipc", None)
        answer = AbortReq(rid=request.rid, finished_reason=reason, http_worker_ipc=worker)
        sock_send(self._tokenizer, answer)

    # -- the loop -------------------------------------------------------------------------

    def event_loop(self) -> None:
        """Serve for ever."""
        while True:
            self.soft_watchdog.feed()
            self._check_schedulers()
            self._poller.poll(POLL_MS)
            self._read_decode()
            self._read_requests()
            read_reports(self._reports, self._lifecycle)
            self._lifecycle.plan()
            self._admin.serve()

    def _check_schedulers(self) -> None:
        for process in self.scheduler_procs:
            if not process.is_alive():
                self._give_up(
                    f"a scheduler process (pid {process.pid}) ended with exit code "
                    f"{process.exitcode}; the pool stops with it: restart the server"
                )

    def _read_requests(self) -> None:
        while True:
            try:
                request = sock_recv(self.recv_from_tokenizer, flags=zmq.NOBLOCK)
            except zmq.Again:
                return
            self._request_dispatcher(request)

    def _read_decode(self) -> None:
        for rank, socket in enumerate(self._contact.sockets):
            while socket.poll(0):
                message = self._contact.receive(rank)
                if isinstance(message, PeerMessage):
                    order = messages.PeerOrder(tp_rank=rank, frames=message.frames)
                    self.send_control_message(order)
                    self._contact.watch(message.rank)
                    self._decode.register(message.rank)
                    self._lifecycle.arrivals.decode_known()
                elif isinstance(message, RoomPages):
                    self._lifecycle.arrivals.pages_named(message.room, message.message)
                elif isinstance(message, RoomAbort):
                    self._on_room_abort(message)

        for host, port, alive in self._contact.changes():
            self._decode.connected(host, port, alive=alive)

    def _on_room_abort(self, abort: RoomAbort) -> None:
        self._lifecycle.abort_room(abort.room, abort.target, abort.frames)
