"""What is simulated: pool, decode, links and planner options, in one frozen object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sglang_cdsp.planner.correction import OnlineCorrection
from sglang_cdsp.planner.latency import LatencyModel, builtin_model
from sglang_cdsp.planner.policies import DEFAULT_POLICY, PolicyOptions
from sglang_cdsp.planner.policies.options import DEFAULT_MIN_CHUNK, DEFAULT_PREEMPT_BUDGET
from sglang_cdsp.planner.prefixes.copies import FIXED_S, CopyCost
from sglang_cdsp.planner.regulator import make_regulator
from sglang_cdsp.simulator.errors import SetupError
from sglang_cdsp.simulator.one_server import OneServer


@dataclass(frozen=True, slots=True)
class DecodeModel:
    """Seconds of one decode iteration: a + b * batch + c * (KV tokens of the batch).

    The defaults are reckoned, not measured: LLaMA3-8B on an A100 at TP8 reads 2 GB of weights
    and 16 KiB per KV token and GPU at 1.5 TB/s, plus some 6 ms of launches and all-reduces.
    """

    a: float = 8e-3
    b: float = 5e-5
    c: float = 1.1e-8

    def __post_init__(self) -> None:
        if not (0 < self.a < math.inf and 0 <= self.b < math.inf and 0 <= self.c < math.inf):
            raise SetupError(
                f"decode model {self.a}, {self.b}, {self.c}: a must be above 0, b and c at least 0"
            )


_SHOWN_APART = frozenset(
    ("model", "true_model", "decode", "improvement_rates", "sp_sizes", "one_server")
)


@dataclass(frozen=True)
class Setup:
    """One simulated system. The defaults are the paper's for LLaMA3-8B.

    Attributes:
        policy: a name that `make_policy` knows.
        model: what the planner believes, Equation 1.
        true_model: how long chunks really take; None = as `model` says.
        straddle_cost: by which fraction a chunk really is slower when its group touches more
            nodes than its size needs. The latency model does not see nodes.
        sp_sizes, page_size, min_chunk: the planner's options.
        instances, instances_per_node, kv_tokens: the prefill pool; KV slots per instance.
        layers: of the model; a chunk gives way before each of them.
        preempt_budget: the planner's option.
        improvement_rate: used when there is no table.
        improvement_rates: arrival rate -> improvement rate, the table of the server's regulator.
        online_correction: the planner's model learns from measured chunks, as the server's does.
        noise: sigma of the lognormal factor (mean 1) on each chunk's time.
        seed: of the noise.
        kv_bytes_per_token: what one token's KV costs to send; 0 = transfers take no time.
        send_bytes_per_s, receive_bytes_per_s: of one prefill and of one decode instance.
        decode_instances: 0 = a request ends with its first token.
        decode_kv_tokens, decode: one decode instance's KV slots and its time model.
        reserve_at_arrival: True = a prompt waits for decode's KV slots before the policy sees it,
            as in the real pool; False = slots are reserved when its first chunk starts.
        unified: LoongServe's own form: requests decode on the prefill instances. `decode` is then
            the time model of one such instance; decode_instances and decode_kv_tokens are unused.
        unified_merge: a request joins a decode group that runs, if one has the room.
        one_server: the one-server form of this package; None for a pool before decode instances.
            `decode` is then the time model of one instance, and decode_instances, decode_kv_tokens
            and reserve_at_arrival are unused.
        prefix_cache: instances keep what they have computed, and plans reuse it.
        prefix_copies: in one server, what is cached is copied to other instances, where that pays.
        cache_block: tokens of a block of `Request.blocks`.
    """

    policy: str = DEFAULT_POLICY
    model: LatencyModel = field(default_factory=builtin_model)
    true_model: LatencyModel | None = None
    straddle_cost: float = 0.0
    sp_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    page_size: int = 1
    min_chunk: int = DEFAULT_MIN_CHUNK
    instances: int = 16
    instances_per_node: int = 8
    kv_tokens: int = 425_984
    layers: int = 32
    preempt_budget: float = DEFAULT_PREEMPT_BUDGET
    improvement_rate: float = 0.0
    improvement_rates: Mapping[str, float] | None = None
    online_correction: bool = False
    noise: float = 0.0
    seed: int = 0
    kv_bytes_per_token: int = 131_072
    send_bytes_per_s: float = 25e9
    receive_bytes_per_s: float = 200e9
    decode_instances: int = 2
    decode_kv_tokens: int = 4_194_304
    decode: DecodeModel = DecodeModel()
    reserve_at_arrival: bool = False
    unified: bool = False
    unified_merge: bool = False
    one_server: OneServer | None = None
    prefix_cache: bool = False
    prefix_copies: bool = True
    cache_block: int = 512

    def __post_init__(self) -> None:
        for name in (
            "instances",
            "instances_per_node",
            "kv_tokens",
            "layers",
            "decode_kv_tokens",
        ):
            if getattr(self, name) < 1:
                raise SetupError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("straddle_cost", "noise", "kv_bytes_per_token", "decode_instances", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SetupError(f"{name} is {getattr(self, name)}; it must be finite and >= 0")
        for name in ("send_bytes_per_s", "receive_bytes_per_s"):
            if not getattr(self, name) > 0:
                raise SetupError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.one_server and self.unified:
            raise SetupError("one_server and unified are two forms; choose one")
        if self.one_server and self.one_server.roles:
            given = len(self.one_server.roles)
            if given != self.instances:
                raise SetupError(
                    f"one_server has roles of {given} instances, the pool has {self.instances}"
                )
        if self.prefix_cache and self.unified:
            raise SetupError(
                "prefix_cache and unified do not combine: what decodes there keeps no prompts"
            )
        if self.cache_block < 1 or self.cache_block % self.page_size:
            raise SetupError(
                f"cache_block is {self.cache_block}; it must be a multiple of the page size "
                f"{self.page_size}"
            )
        if self.unified and self.policy != "loongserve":
            raise SetupError(
                f"policy {self.policy!r} cannot be unified: only loongserve decodes on prefill "
                "instances; leave unified out"
            )

    @property
    def slots(self) -> int:
        """KV slots of one prefill instance that whole pages can use."""
        return self.kv_tokens // self.page_size * self.page_size

    def copy_cost(self) -> CopyCost | None:
        """What it takes to copy a cached prefix; None where none is copied."""
        if not (self.prefix_cache and self.prefix_copies and self.one_server):
            return None
        bytes_per_s = min(self.send_bytes_per_s, self.receive_bytes_per_s)
        return CopyCost(FIXED_S, self.kv_bytes_per_token / bytes_per_s)

    def usable_sizes(self) -> tuple[int, ...]:
        """SP sizes that the pool has instances for."""
        return tuple(size for size in self.sp_sizes if size <= self.instances)

    def make_options(self) -> PolicyOptions:
        """The production planner's options, put together as the server does.

        Raises:
            PlannerError: an option does not fit the model; names the remedy.
        """
        sizes = self.usable_sizes()
        regulator = None
        if self.improvement_rates is not None:
            regulator = make_regulator(sizes, self.improvement_rate, self.improvement_rates)
        return PolicyOptions(
            model=self.model,
            sp_sizes=sizes,
            page_size=self.page_size,
            min_chunk=self.min_chunk,
            improvement_rate=self.improvement_rate,
            regulator=regulator,
            correction=OnlineCorrection(self.model) if self.online_correction else None,
            preempt_budget=self.preempt_budget,
            copy_costs=self.copy_cost if self.prefix_cache else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """In JSON types, for reports."""
        plain = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in _SHOWN_APART
        }
        return {
            **plain,
            "sp_sizes": list(self.sp_sizes),
            "model": self.model.to_json(),
            "true_model": self.true_model.to_json() if self.true_model else None,
            "decode": {"a": self.decode.a, "b": self.decode.b, "c": self.decode.c},
            "improvement_rates": dict(self.improvement_rates) if self.improvement_rates else None,
            "one_server": self.one_server.to_dict() if self.one_server else None,
        }
