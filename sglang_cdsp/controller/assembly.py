"""How a pool's planner and life cycle are put together, once its schedulers have greeted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import zmq

from sglang_cdsp.args import CdspArgs
from sglang_cdsp.controller.admission import Admission
from sglang_cdsp.controller.calibration import measured_model, probe_lengths, probe_runner
from sglang_cdsp.controller.decode.rooms import Rooms
from sglang_cdsp.controller.decode.servers import DecodeServers
from sglang_cdsp.controller.dispatcher import Dispatcher, logprob_spec
from sglang_cdsp.controller.kept_models import MeasuredOn, kept_or_measured, place
from sglang_cdsp.controller.lanes import LaneTable
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.lifecycle import Lifecycle
from sglang_cdsp.controller.planning import Planning, make_planning
from sglang_cdsp.controller.prefixes.pool import PoolPrefixes
from sglang_cdsp.controller.prefixes.publisher import PoolPublisher
from sglang_cdsp.controller.queue_limits import QueueLimits
from sglang_cdsp.controller.quiet import QuietGate
from sglang_cdsp.controller.request_checks import LIMITS, unsupported
from sglang_cdsp.controller.warm_up import warm_up, warm_up_plans
from sglang_cdsp.form import Form
from sglang_cdsp.planner import default_sp_sizes
from sglang_cdsp.planner.latency import LatencyModel, builtin_model
from sglang_cdsp.planner.prefixes.copies import CopyTimes
from sglang_cdsp.protocol.limits import LANES
from sglang_cdsp.protocol.messages import Hello

LEAST_REUSED_TOKENS = 32
"""Shorter cached prefixes are not worth a search for a plan, nor being tied to a holder."""


@dataclass(frozen=True)
class PoolParts:
    """What a pool's planner and life cycle are made from.

    Attributes:
        hello: of one rank; all say the same of the model.
        tp_size: ranks of an instance.
        reports: the socket at which the schedulers report.
        lanes: of the links; the measurement at start uses them too.
        gate: says what may start.
        max_shard_tokens: how many tokens a member may have in one chunk, None for no limit.
        model, device: what a latency model that is measured here is called.
        expands: whether the model's history costs something of its own, see ``Coefficients``.
        identity: what the model is, see `launch.model.identity`; its name and its digest.
        settings: options of SGLang's that change how long a forward takes.
        form: of the pool.
        reuses_prefixes: whether SGLang's prefix caches are on.
        publisher: of the pool's KV events.
    """

    args: CdspArgs
    hello: Hello
    ledger: InstanceLedger
    rooms: Rooms
    decode: DecodeServers
    limits: QueueLimits
    dispatcher: Dispatcher
    tp_size: int
    reports: zmq.Socket[bytes]
    gate: QuietGate[Any]
    model: str
    device: str
    expands: bool = False
    max_shard_tokens: int | None = None
    identity: tuple[str, str] = ("", "")
    settings: Mapping[str, str] = field(default_factory=dict)
    form: Form = Form.PREFILL
    reuses_prefixes: bool = False
    publisher: PoolPublisher = field(default_factory=lambda: PoolPublisher(None))
    lanes: LaneTable = field(default_factory=lambda: LaneTable(LANES))

    def planning(self) -> Planning:
        """Run probes, which warm up the pool and measure it if need be; then make the planner.

        Raises:
            ValueError: an option does not fit the model; names the remedy.
            RuntimeError: the pool does not work, or could not be measured.
        """
        instances = len(self.ledger.capacity)
        sizes = self.args.sp_sizes or default_sp_sizes(instances)
        page_size, longest = self.hello.page_size, self.ledger.smallest_instance
        given = self.args.latency_model
        model = LatencyModel.load(given) if given is not None else None
        stand_in = make_planning(CdspArgs(), builtin_model(), (1,), page_size)
        prefixes = None
        if self.reuses_prefixes:
            prefixes = PoolPrefixes(
                self.ledger.capacity,
                page_size,
                _first_logprob,
                LEAST_REUSED_TOKENS,
                self.ledger.prefixes,
                publishes=self.publisher.is_open,
                rename=self.publisher.rename,
            )
        run = probe_runner(self.lifecycle(stand_in), self.reports)
        all_sizes = tuple(sorted({*sizes, instances}))
        warm_up(warm_up_plans(instances, all_sizes, page_size, longest), run)
        source = f"from {given}"
        if model is None:
            longest = min(self.hello.max_input_tokens, longest)
            model, source = kept_or_measured(
                place(self.args.cache),
                self._measured_on(all_sizes, longest),
                lambda: measured_model(
                    all_sizes,
                    longest,
                    page_size,
                    run,
                    model=self.model,
                    device=self.hello.device or self.device,
                    expands=self.expands,
                ),
                anew=self.args.measure_anew,
            )
        token_bytes = self.hello.kv_token_bytes * self.tp_size
        copies = CopyTimes(token_bytes) if prefixes is not None and token_bytes else None
        return make_planning(self.args, model, sizes, page_size, source, prefixes, copies)

    def _measured_on(self, sizes: tuple[int, ...], longest: int) -> MeasuredOn:
        """What a model depends on that is measured now, with prompts up to ``longest`` tokens."""
        model, config = self.identity
        return MeasuredOn(
            model=model,
            config=config,
            device=self.hello.device,
            dtype=self.hello.dtype,
            tp_size=self.tp_size,
            sglang=version("sglang"),
            torch=version("torch"),
            sp_sizes=sizes,
            longest_chunk=max(probe_lengths(longest, self.hello.page_size), default=0),
            settings={
                **self.settings,
                "kv_cache_dtype": self.hello.kv_cache_dtype,
                "page_size": str(self.hello.page_size),
            },
        )

    def lifecycle(self, planning: Planning) -> Lifecycle:
        """A life cycle whose effects reach the schedulers, decode and the clients."""
        return Lifecycle(
            ledger=self.ledger,
            planning=planning,
            rooms=self.rooms,
            effects=self.dispatcher,
            admission=Admission(
                policy=planning.policy,
                view=lambda: self.ledger.view(time.monotonic()),
                page_size=self.hello.page_size,
                max_input_tokens=self.hello.max_input_tokens,
                allow_request_plans=self.args.allow_request_plans,
                decode=self.decode,
                unsupported=partial(
                    unsupported, vocab_size=self.hello.vocab_size, limits=LIMITS[self.form]
                ),
                roles=lambda: self.ledger.roles,
            ),
            tp_size=self.tp_size,
            clock=time.monotonic,
            decode=self.decode,
            limits=self.limits,
            stock_tokens=self.args.stock_tokens,
            max_shard_tokens=self.max_shard_tokens,
            lanes=self.lanes,
            gate=self.gate,
            seat_timeout_s=self.args.seat_timeout,
        )


def _first_logprob(tokenized: Any) -> int | None:
    spec = logprob_spec(tokenized)
    return None if spec is None else spec.start
