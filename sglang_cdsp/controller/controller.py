"""The pool controller: SGLang's data-parallel controller with a planner in it.

It owns no tensors. It polls its sockets (requests from the tokenizer, reports from the schedulers,
decode's messages, the admin routes), passes what it reads to the :class:`Lifecycle`, and never
spins.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import Any

import zmq
from sglang.srt.environ import envs
from sglang.srt.managers.data_parallel_controller import DataParallelController
from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenizedGenerateReqInput,
    BlockReqInput,
    HealthCheckOutput,
    ProfileReq,
    ShutdownReq,
    TokenizedGenerateReqInput,
    sock_recv,
    sock_send,
)
from sglang.srt.managers.utils import is_health_check_generate_req
from sglang.srt.observability.startup_time import aggregate_scheduler_startup_times
from sglang.srt.runtime_context import (
    get_disagg,
    get_memory,
    get_observability,
    get_parallel,
    get_serving,
)
from sglang.srt.utils.network import get_local_ip_auto, get_zmq_socket

from sglang_cdsp import architectures
from sglang_cdsp.args import CdspArgs, CdspConfigError, active_args
from sglang_cdsp.checks import check_transfer_backend
from sglang_cdsp.controller.assembly import PoolParts
from sglang_cdsp.controller.control_messages import PAUSED, ControlMessages
from sglang_cdsp.controller.decode.destination import Destination, NoDestination
from sglang_cdsp.controller.decode.endpoint import DecodeEndpoint
from sglang_cdsp.controller.decode.rooms import Rooms
from sglang_cdsp.controller.decode.servers import DecodeServers
from sglang_cdsp.controller.decode.wire import PeerMessage, RoomAbort, RoomPages, wire_format
from sglang_cdsp.controller.decode_shares import DecodeShares
from sglang_cdsp.controller.dispatcher import Dispatcher
from sglang_cdsp.controller.exported.instruments import make_instruments
from sglang_cdsp.controller.exported.levels import Levels
from sglang_cdsp.controller.exported.observer import CountedReports, ExportedMetrics
from sglang_cdsp.controller.feed.feed import Facts, Feed
from sglang_cdsp.controller.feed.reasons import reasons_of
from sglang_cdsp.controller.feed.recent import Recent
from sglang_cdsp.controller.health import PoolHealth
from sglang_cdsp.controller.intake import (
    joins_a_room,
    name_its_space,
    pool_request,
    turned_away,
)
from sglang_cdsp.controller.launch_watch import LaunchWatch
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.metrics import PoolMetrics
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.plan_log import PlanLog
from sglang_cdsp.controller.pool_seats import PoolSeats
from sglang_cdsp.controller.prefixes.publisher import PoolPublisher
from sglang_cdsp.controller.reports import read_reports
from sglang_cdsp.controller.request_checks import grammar_order
from sglang_cdsp.controller.request_log import RequestLog, start_line
from sglang_cdsp.controller.seats.stock_ranks import StockRanks
from sglang_cdsp.controller.seats.wishes import KEY
from sglang_cdsp.controller.startup import (
    PoolIncompleteError,
    await_hellos,
    bootstrap_route,
    bootstrap_row,
    give_up,
    largest_shard,
    link_orders,
    queue_limits,
)
from sglang_cdsp.controller.status import LoadTold, PoolStatus
from sglang_cdsp.controller.turns import KEY as ROLES
from sglang_cdsp.controller.turns import RoleTurns
from sglang_cdsp.form import Form, form_of, tells_caches
from sglang_cdsp.launch.model import config_of
from sglang_cdsp.launch.model import identity as model_identity
from sglang_cdsp.planner.forced import PARAMETER
from sglang_cdsp.planner.policies import default_sp_sizes
from sglang_cdsp.planner.roles import Roles, roles_of
from sglang_cdsp.protocol import last_words, messages
from sglang_cdsp.protocol.addresses import PoolAddresses, publish_addresses
from sglang_cdsp.protocol.admin import AdminServer
from sglang_cdsp.protocol.heartbeat import Heartbeat
from sglang_cdsp.protocol.progress import ProgressBoard
from sglang_cdsp.releases import controller_records_facts

logger = logging.getLogger(__name__)

POLL_MS = 100
LOOPBACK = "127.0.0.1"

SETTINGS_OF_TIMES = ("attention_backend", "prefill_attention_backend", "quantization")
"""Options of SGLang's by which the same forward takes another time."""


class PoolController(DataParallelController):
    """SGLang's controller of data-parallel instances, which plans requests over all of them."""

    def __init__(self, server_args: Any, port_args: Any, *more: Any) -> None:
        """``more`` is SGLang's own: how to run a scheduler, and in 0.5.23 schedulers that run."""
        args = active_args()
        assert args is not None
        self._cdsp: CdspArgs = args
        self._form = form_of(get_disagg().disaggregation_mode)
        self._host = ""
        if self._form is Form.PREFILL:
            self._host = get_local_ip_auto()
            try:
                check_transfer_backend(get_disagg().disaggregation_transfer_backend)
            except CdspConfigError as error:
                give_up(str(error))
        self._publisher = self._open_publisher()
        messages.register_orders()
        self._tp_size = int(get_parallel().tp_size)
        self._zmq = zmq.Context()
        self._control = ControlMessages(
            forward=self._forward_control,
            answer=self._answer_control,
            stand_in=lambda answer: sock_send(self._tokenizer, answer),
            pass_on=lambda payload: self._tokenizer.send(payload),
            clock=time.monotonic,
            seats=int(get_parallel().dp_size),
        )
        self._reports = self._open_reports()
        super().__init__(server_args, port_args, *more)
        self._endpoint = self._open_endpoint()
        self._tokenizer = get_zmq_socket(self._zmq, zmq.PUSH, port_args.tokenizer_ipc_name, False)
        # Where the schedulers themselves would send output.
        text = not get_serving().skip_tokenizer_init
        outputs = port_args.detokenizer_ipc_name if text else port_args.tokenizer_ipc_name
        self._outputs = get_zmq_socket(self._zmq, zmq.PUSH, outputs, False)
        self._admin = AdminServer(
            self._zmq,
            args.admin,
            args.admin_key,
            status=lambda: self._status.snapshot(),
            update=self._update,
            timeline=lambda since: self._feed.answer(since),
        )
        self._poller = zmq.Poller()
        for socket in (
            *(self._reports, self.recv_from_tokenizer, self._admin.socket),
            *self._endpoint.sockets,
        ):
            self._poller.register(socket, zmq.POLLIN)
        self._log = PlanLog(args.plan_log)
        self._metrics = PoolMetrics()
        self._instruments = make_instruments(
            {
                "model_name": str(get_serving().served_model_name),
                **(get_observability().extra_metric_labels or {}),
            },
            enabled=bool(get_observability().enable_metrics),
        )
        self._exported = ExportedMetrics(
            self._instruments,
            seats=int(get_parallel().dp_size),
            tp_size=self._tp_size,
            sp_sizes=args.sp_sizes or default_sp_sizes(int(get_parallel().dp_size)),
        )
        self._recent = Recent(
            lambda request: reasons_of(request, self._planning, self._ledger.page_size),
            time.monotonic,
        )
        self._observers = (
            *(self._log, self._metrics, self._exported, RequestLog()),
            self._recent,
        )
        self._limits = queue_limits()
        self._rooms = Rooms(self._tp_size)
        with LaunchWatch(lambda: self.scheduler_procs, self._seats.refuse):
            hellos = self._meet()
            hello = hellos[(0, 0)]
            self._decode = DecodeServers(
                page_size=hello.page_size,
                reserved_tokens=int(get_disagg().num_reserved_decode_tokens or 0),
                timeout_s=float(envs.SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT.get()),
                stated_tokens=args.decode_max_total_tokens,
                release_s=float(
                    envs.SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE_TIMEOUT.get()
                ),
            )
            self.max_req_input_len = hello.max_input_tokens
            self.max_total_num_tokens = sum(self._ledger.capacity)
            self._start_planning(hello)
        # What SGLang 0.5.23 tells its gRPC server; the instances have no publishers.
        self.local_kv_event_sources = self._publisher.sources(hello.page_size)
        self._seats.keep(self._lifecycle, hellos, self._observers)
        self._reader = CountedReports(self._seats, self._exported)
        self._tell_status()
        if self._form is Form.PREFILL:
            self._endpoint.register(bootstrap_route(), bootstrap_row(hello, self._tp_size))
            # Stock decode refuses a pool with other pages than its own.
            logger.info("decode servers of this pool need --page-size %d", hello.page_size)
        self._say_what_runs(hello)

    # -- start ----------------------------------------------------------------------------

    def _open_reports(self) -> zmq.Socket[bytes]:
        """Open what the schedulers need to know of, and leave the addresses for them.

        All of it is for processes of this machine, so it listens on the loopback interface only.
        """
        size = int(get_parallel().dp_size)
        reports: zmq.Socket[bytes] = self._zmq.socket(zmq.PULL)
        reports.setsockopt(zmq.RCVHWM, 0)
        port = reports.bind_to_random_port(f"tcp://{LOOPBACK}")
        self._progress = ProgressBoard.create(size * self._tp_size)
        words = last_words.new_place()
        publish_addresses(
            PoolAddresses(
                reports=f"tcp://{LOOPBACK}:{port}", progress=str(self._progress.path), words=words
            )
        )
        self._seats = PoolSeats(
            size=size,
            tp_size=self._tp_size,
            progress=self._progress,
            words=words,
            control=self._control,
            pass_on=lambda payload: self._outputs.send(payload),
        )
        return reports

    def _open_publisher(self) -> PoolPublisher:
        """The pool's publisher of KV events; closed where its instances cache nothing."""
        config = get_observability().kv_events_config
        off = bool(get_memory().disable_radix_cache)
        told = tells_caches(self._form.value, radix_cache_off=off)
        try:
            return PoolPublisher(config if told else None)
        except (ValueError, zmq.ZMQError) as error:
            give_up(f"--kv-events-config {config}: {' '.join(str(error).split())}")

    def _open_endpoint(self) -> Destination:
        """The pool's face towards decode servers, if there are any."""
        if self._form is Form.ONE_SERVER:
            return NoDestination()
        backend = get_disagg().disaggregation_transfer_backend
        return DecodeEndpoint(self._tp_size, self._host, wire_format(backend))

    def launch_dp_schedulers(self, server_args: Any, port_args: Any) -> None:
        """Start all instances, in place of stock's launch, which is made for one start of each."""
        ranks = StockRanks(server_args, port_args, self.run_scheduler_process_func)
        facts = self._seats.launch(ranks, self.context, self.workers, self._listens)
        self.scheduler_procs = self._seats.processes
        if controller_records_facts():
            self._record_scheduler_init_infos(facts)
        else:
            times = (fact.get("startup_time") for fact in facts)
            self.startup_time = aggregate_scheduler_startup_times(times)

    def _listens(self, seat: int, listens: bool) -> None:
        """A seat hears SGLang's messages from now on, or none any more."""
        self.status[seat] = listens
        self._refresh_active_workers()

    def _meet(self) -> dict[tuple[int, int], messages.Hello]:
        """Let all schedulers greet, and link them up; returns what they say of themselves."""
        size = int(get_parallel().dp_size)
        try:
            hellos = await_hellos(self._reports, size, self._tp_size)
        except PoolIncompleteError as error:
            give_up(str(error))
        for seat, order in link_orders(hellos):
            self._seats.send(seat, order)
        self._max_shard_tokens = largest_shard(hellos.values(), self._cdsp.max_shard_tokens)
        if self._max_shard_tokens is not None:
            logger.info("a member computes at most %d tokens at once", self._max_shard_tokens)
        self._health = PoolHealth(self._progress.read, self._tp_size, time.monotonic)
        first = hellos[(0, 0)]
        self._ledger = InstanceLedger(
            capacity=tuple(hellos[(i, 0)].kv_capacity for i in range(size)),
            page_size=first.page_size,
            instances_per_node=self._cdsp.instances_per_node or size,
            layers=first.layers,
            preempt_budget=self._cdsp.preempt_budget,
            decode=DecodeShares(
                self._cdsp.decode_share if self._form is Form.ONE_SERVER else 0.0,
                self._cdsp.tpot_target,
            ),
        )
        return hellos

    def _start_planning(self, hello: messages.Hello) -> None:
        """Put planner and life cycle together; what does not fit ends the server."""
        parts = PoolParts(
            args=self._cdsp,
            hello=hello,
            ledger=self._ledger,
            rooms=self._rooms,
            decode=self._decode,
            limits=self._limits,
            dispatcher=Dispatcher(
                workers=self.workers,
                endpoint=self._endpoint,
                decode=self._decode,
                rooms=self._rooms,
                tokenizer=self._tokenizer,
                observers=self._observers,
            ),
            tp_size=self._tp_size,
            reports=self._reports,
            gate=self._control.gate,
            model=str(self.server_args.model_path),
            device=str(self.server_args.device),
            expands=architectures.expands(config_of(self.server_args)),
            max_shard_tokens=self._max_shard_tokens,
            identity=model_identity(self.server_args),
            settings={
                name: str(getattr(self.server_args, name, None)) for name in SETTINGS_OF_TIMES
            },
            form=self._form,
            reuses_prefixes=not get_memory().disable_radix_cache,
            publisher=self._publisher,
        )
        try:
            self._planning = parts.planning()
        except (ValueError, RuntimeError) as error:
            give_up(str(error))
        self._lifecycle = parts.lifecycle(self._planning)
        # The pool was warmed up and measured with all of its instances.
        self._ledger.take_roles(roles_of(self._cdsp.roles, len(self._ledger.capacity)))
        self._turns = RoleTurns(
            self._planning.policy,
            self._ledger,
            self._put_roles,
            time.monotonic,
            decodes=self._form is Form.ONE_SERVER,
        )
        self._levels = Levels(
            self._instruments,
            requests=self._lifecycle,
            ledger=self._ledger,
            planning=self._planning,
            decode=self._decode,
            up=lambda: self._seats.up,
            decodes=self._form is Form.ONE_SERVER,
        )
        self._status = PoolStatus(
            planning=self._planning,
            ledger=self._ledger,
            lifecycle=self._lifecycle,
            decode=self._decode,
            metrics=self._metrics,
            seats=self._seats,
            decodes=self._form is Form.ONE_SERVER,
        )
        self._load_told = LoadTold(self._lifecycle, self._seats)
        self._feed = Feed(
            self._recent,
            requests=self._lifecycle,
            ledger=self._ledger,
            planning=self._planning,
            layers=self._progress.layers,
            seats=self._seats.snapshot,
            decode_ranks=lambda: len(self._decode.ranks),
            facts=Facts(
                model=str(get_serving().served_model_name),
                form=self._form.name.lower(),
                tp_size=self._tp_size,
                layers=hello.layers,
            ),
        )

    def _say_what_runs(self, hello: messages.Hello) -> None:
        """One line of SGLang's log; all ranks' greetings say the same of links."""
        regulation = self._planning.regulator
        line = start_line(
            instances=int(get_parallel().dp_size),
            tp_size=self._tp_size,
            policy=self._planning.policy.name,
            sp_sizes=regulation.sp_sizes,
            improvement_rate=regulation.rate,
            latency_model=self._planning.source,
            links=hello.links,
            transfer=(
                get_disagg().disaggregation_transfer_backend if self._form is Form.PREFILL else None
            ),
            capacity_tokens=self._ledger.smallest_instance,
        )
        logger.info("%s", line)

    # -- status and updates ---------------------------------------------------------------

    def _update(self, body: Any) -> None:
        """What ``POST /cdsp/update`` changes; ``ValueError`` leaves everything as it was."""
        roles = self._turns.read(body)
        wished = self._seats.wish(body)
        rest = body
        if wished or roles is not None:
            rest = {key: value for key, value in body.items() if key not in (KEY, ROLES)}
        if rest is body or rest:
            self._planning.update(rest)
            self._lifecycle.on_sizes_changed()
            self._tell_status()
        if roles is not None:
            self._turns.put(roles)

    def _put_roles(self, roles: Roles, why: str) -> None:
        """Roles are in force from now on, and shown."""
        self._lifecycle.on_roles(roles, why)
        self._tell_status()

    def _tell_status(self) -> None:
        """Let ``/server_info``, which asks the schedulers, show the planner too."""
        order = self._status.order()
        self._seats.told.status(order)
        self.send_control_message(order)

    # -- requests -------------------------------------------------------------------------

    def init_dispatcher(self) -> None:
        super().init_dispatcher()
        mapping = self._request_dispatcher._mapping
        mapping[TokenizedGenerateReqInput] = self.on_request
        mapping[BatchTokenizedGenerateReqInput] = self._on_batch
        mapping[AbortReq] = self._on_abort
        mapping[ShutdownReq] = self._on_shutdown
        # Stock sends these past its fallback; questions take one way, or nobody expects answers.
        mapping[ProfileReq] = mapping[BlockReqInput] = self._on_control
        self._request_dispatcher.add_fallback_fn(self._on_control)

    def _on_control(self, message: Any) -> None:
        """A control message of SGLang's."""
        self._control.on(message, self._lifecycle)

    def _on_batch(self, batch: BatchTokenizedGenerateReqInput) -> None:
        for tokenized in batch:
            self.on_request(tokenized)

    def on_request(self, tokenized: TokenizedGenerateReqInput) -> None:
        """A request from the tokenizer; SGLang's own checks take the stock way."""
        if is_health_check_generate_req(tokenized):
            self._on_health_check(tokenized)
            return
        decodes = self._form is Form.ONE_SERVER
        if decodes or self._planning.prefixes is not None:
            name_its_space(tokenized)
        seat = tokenized.routed_dp_rank
        if seat is not None and (decodes or not joins_a_room(tokenized)):
            if seat in self._seats.up or not 0 <= seat < len(self.workers):
                self.dispatching_with_trace(tokenized)
            else:
                state = self._seats.table.state(seat).value
                message = f"instance {seat} is {state}: send it again later"
                sock_send(self._tokenizer, turned_away(tokenized, message))
            return
        request = pool_request(
            tokenized,
            arrival_s=time.monotonic(),
            urgency=self._limits.urgency(tokenized.priority),
            decodes=decodes,
            ledger=self._ledger,
        )
        custom = tokenized.sampling_params.custom_params or {}
        self._lifecycle.on_request(request, custom.get(PARAMETER))
        order = grammar_order(tokenized)
        if order is not None and request.phase is not Phase.ENDED and (up := self._seats.up):
            # Equal grammars to the same instance: its backend has compiled them already.
            self._seats.send(up[hash(order.text) % len(up)], order)

    def _on_health_check(self, tokenized: TokenizedGenerateReqInput) -> None:
        """Answer for a pool that works on chunks; an idle one shows that it can generate."""
        busy = self._observe()
        self._seats.health.say_degraded()
        if stuck := self._health.stuck:
            logger.error("sglang-cdsp: instances %s have come no further: not healthy", stuck)
        elif busy:
            worker = getattr(tokenized, "http_worker_ipc", None)
            sock_send(self._tokenizer, HealthCheckOutput(http_worker_ipc=worker))
        else:
            self._seats.health.pass_on(tokenized)

    def _observe(self) -> frozenset[int]:
        """Look whether busy instances come on, and return these; in a pause none has to."""
        paused = self._control.gate.closed >= PAUSED
        busy = frozenset() if paused else self._lifecycle.busy_instances
        self._health.observe(busy)
        return busy

    def _forward_control(self, message: Any, seats: Collection[int]) -> None:
        """Send a control message to some instances."""
        for seat in seats:
            self._seats.send(seat, message)

    def _answer_control(self, answer: Any) -> None:
        """Answer a control message in every instance's name: SGLang waits for all of them."""
        for _ in self.workers:
            sock_send(self._tokenizer, answer)

    def _on_abort(self, abort: AbortReq) -> None:
        reason = abort.abort_message or "aborted by the client"
        self._lifecycle.on_abort(str(abort.rid), reason, everything=abort.abort_all)
        # SGLang's own requests (warm-up, health checks) are not in the pool's table.
        self.send_control_message(abort)

    def _on_shutdown(self, shutdown: ShutdownReq) -> None:
        """The server ends in order: schedulers that end now are not lost."""
        self._seats.leave_alone()
        self._forward_control(shutdown, range(len(self.workers)))

    # -- the loop -------------------------------------------------------------------------

    def event_loop(self) -> None:
        """Serve for ever."""
        heartbeat = Heartbeat.opened()
        while True:
            heartbeat.beat()
            self.soft_watchdog.feed()
            self._poller.poll(0 if self._owes_events else POLL_MS)
            self._seats.tick()
            self._read_decode()
            self._read_requests()
            read_reports(self._reports, self._reader)
            self._control.serve(self._lifecycle)
            self._turns.ask_policy()
            self._lifecycle.on_loop()
            self._publish_events()
            self._load_told.tick(time.monotonic())
            self._levels.tick(time.monotonic(), self._observe())
            self._feed.tick(time.monotonic())
            self._admin.serve()

    @property
    def _owes_events(self) -> bool:
        """Whether subscribers are still to be told what is cached no more."""
        prefixes = self._planning.prefixes
        return prefixes is not None and prefixes.owes_events

    def _publish_events(self) -> None:
        if (prefixes := self._planning.prefixes) is not None:
            self._publisher.publish(prefixes.events())

    def _read_requests(self) -> None:
        while True:
            try:
                request = sock_recv(self.recv_from_tokenizer, flags=zmq.NOBLOCK)
            except zmq.Again:
                return
            self._request_dispatcher(request)

    def _read_decode(self) -> None:
        for rank, message in self._endpoint.messages():
            match message:
                case PeerMessage():
                    order = messages.PeerOrder(tp_rank=rank, frames=message.frames)
                    self._seats.told.peer(message.rank, order)
                    self.send_control_message(order)
                    self._endpoint.watch(message.rank)
                    self._lifecycle.on_decode_registered(message.rank)
                case RoomPages():
                    self._lifecycle.on_pages(message.room, message.message)
                case RoomAbort():
                    self._lifecycle.on_room_abort(message.room, message.target, message.frames)
        for host, port, alive in self._endpoint.changes():
            self._lifecycle.on_decode_link(host, port, alive=alive)
