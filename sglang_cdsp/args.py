"""The ``--cdsp`` flags: their defaults, their checks, and how they reach child processes.

SGLang copies only its own declared fields from the command line, so the plugin keeps its
options itself: the launching process parses them here and leaves them in one environment
variable, which every spawned SGLang process inherits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sglang_cdsp.planner.decode_price import USUAL_SHARE
from sglang_cdsp.planner.errors import OptionError
from sglang_cdsp.planner.policies.options import (
    DEFAULT_IMPROVEMENT_RATE,
    DEFAULT_MIN_CHUNK,
    DEFAULT_PREEMPT_BUDGET,
)
from sglang_cdsp.planner.policies.registry import DEFAULT_POLICY, POLICY_HELP, find
from sglang_cdsp.planner.roles import parse_roles

ENV_VAR = "SGLANG_CDSP_CONFIG"

CACHE_VAR = "SGLANG_CDSP_CACHE"
"""Names the folder of what is kept from one start to the next."""

# The namespace's attribute for complaints about ``--cdsp-*`` flags that there are not.
UNKNOWN_FLAGS = "cdsp_unknown_flags"

# Releases whose hook targets were read and whose servers were run (see docs/releases.md).
TESTED_SGLANG_VERSIONS = ("0.5.21", "0.5.23")


DEFAULT_STOCK_TOKENS = 1024
"""Longest one-instance prompt of SGLang's own batches: about a layer of a long prompt's chunk."""

DEFAULT_SEAT_TIMEOUT_S = 120.0
"""How long a prompt that only fits with an absent instance waits for it: a start or two."""


class CdspConfigError(ValueError):
    """What the pool cannot be started with, everything that was found.

    Attributes:
        problems: one line each, with the remedy.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Unread:
    """A flag's text that is not the number it should be; told later, with all other mistakes."""

    text: str
    wanted: str


def _number(kind: type[int] | type[float], wanted: str) -> Callable[[str], int | float | Unread]:
    """An argparse type that leaves a mistake to :func:`from_namespace`."""

    def read(text: str) -> int | float | Unread:
        try:
            return kind(text)
        except ValueError:
            return Unread(text, wanted)

    return read


_integer = _number(int, "an integer")
_fraction = _number(float, "a number")


@dataclass(frozen=True)
class CdspArgs:
    """Options of the pool, as given on the command line.

    Attributes:
        policy: name of the planning policy, see ``sglang_cdsp.planner``.
        sp_sizes: candidate SP sizes in ascending order; empty means powers of two up to the pool.
        improvement_rate: fraction by which a larger SP size must cut TTFT, in [0, 1).
        min_chunk: smallest planned chunk in tokens (the last chunk of a prompt may be shorter).
        stock_tokens: longest one-instance prompt that runs in SGLang's own batches, in tokens; a
            longer one is a chunk task, which gives way inside its forward.
        preempt_budget: share of its own time by which prompts that pass may delay a running one.
        decode_share: share of an instance's time that requests which decode there get beside a
            chunk, in (0, 0.5]; None for the one that follows from who runs and who waits
            (``planner.decode_price``), or from ``tpot_target``.
        tpot_target: seconds between two tokens of a request that decodes beside a chunk, which is
            turned into the decode share; None for no such promise.
        roles: who takes chunks and who decodes, in the form of ``planner.roles``; "" for both
            everywhere.
        max_shard_tokens: most tokens of a member in one chunk; None for what device memory allows.
        latency_model: path of a latency model file; None means one that an earlier start has
            measured and kept, or else that the server measures itself.
        instances_per_node: instances that share a node; None means the whole pool.
        plan_log: file that receives one JSON line per ended request; None means no log.
        allow_request_plans: accept ``sampling_params.custom_params.cdsp_plan``.
        any_sglang_version: serve on an SGLang release that was not tested.
        decode_max_total_tokens: KV tokens that a decode server holds; None to hear it from decode.
        seat_timeout: how long a prompt that fits only with an instance which is coming back waits
            for it, in seconds.
        improvement_rates: file that maps arrival rates to improvement rates, None for one rate.
        cache: folder of kept latency models; None for ``SGLANG_CDSP_CACHE``, or the user's.
        measure_anew: measure even where a latency model was kept.
        prefix_cache: before decode servers, keep prompts' KV where they ended, and start from it.
        admin: where the controller answers the HTTP process; chosen at start.
        admin_key: what the HTTP process proves itself with; chosen at start.
    """

    policy: str = DEFAULT_POLICY
    sp_sizes: tuple[int, ...] = ()
    improvement_rate: float = DEFAULT_IMPROVEMENT_RATE
    min_chunk: int = DEFAULT_MIN_CHUNK
    stock_tokens: int = DEFAULT_STOCK_TOKENS
    preempt_budget: float = DEFAULT_PREEMPT_BUDGET
    decode_share: float | None = None
    tpot_target: float | None = None
    roles: str = ""
    max_shard_tokens: int | None = None
    latency_model: str | None = None
    instances_per_node: int | None = None
    plan_log: str | None = None
    allow_request_plans: bool = False
    any_sglang_version: bool = False
    decode_max_total_tokens: int | None = None
    seat_timeout: float = DEFAULT_SEAT_TIMEOUT_S
    improvement_rates: str | None = None
    cache: str | None = None
    measure_anew: bool = False
    prefix_cache: bool = False
    admin: str = ""
    admin_key: str = ""

    def to_json(self) -> str:
        """Serialise for the environment of child processes."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CdspArgs:
        """Inverse of :meth:`to_json`; unknown keys are an error."""
        raw: dict[str, Any] = json.loads(text)
        raw["sp_sizes"] = tuple(raw.get("sp_sizes", ()))
        return cls(**raw)


def add_cli_args(parser: argparse.ArgumentParser) -> None:
    """Add the ``--cdsp`` argument group to SGLang's server parser."""
    default = CdspArgs()
    group = parser.add_argument_group(
        "CDSP",
        "Chunkwise Dynamic Sequence Parallelism in one server or a prefill server (sglang-cdsp)",
    )
    group.add_argument(
        "--cdsp",
        action="store_true",
        help="Run the --dp-size instances as one elastic sequence-parallel pool: with "
        "--disaggregation-mode prefill for stock decode servers, without it for itself.",
    )
    group.add_argument(
        "--cdsp-policy",
        default=default.policy,
        metavar="NAME",
        help=f"Planning policy: {POLICY_HELP} (default: {default.policy}).",
    )
    group.add_argument(
        "--cdsp-sp-sizes",
        default="",
        metavar="N,N,...",
        help="Candidate SP sizes (default: powers of two up to the pool).",
    )
    group.add_argument(
        "--cdsp-improvement-rate",
        type=_fraction,
        default=default.improvement_rate,
        metavar="R",
        help="Fraction by which a larger SP size must cut TTFT to be taken, in [0, 1) "
        f"(default: {default.improvement_rate}).",
    )
    group.add_argument(
        "--cdsp-improvement-rates",
        default=None,
        metavar="FILE",
        help="JSON object of arrival rate (requests/s) to improvement rate; takes the place of "
        "--cdsp-improvement-rate and follows the load. POST /cdsp/update changes it at run time.",
    )
    group.add_argument(
        "--cdsp-min-chunk",
        type=_integer,
        default=default.min_chunk,
        metavar="TOKENS",
        help=f"Smallest planned chunk in tokens (default: {default.min_chunk}).",
    )
    group.add_argument(
        "--cdsp-stock-tokens",
        type=_integer,
        default=default.stock_tokens,
        metavar="TOKENS",
        help="Longest prompt on one instance that runs in SGLang's own batches; longer ones give "
        f"way to others at every layer (default: {default.stock_tokens}).",
    )
    group.add_argument(
        "--cdsp-preempt-budget",
        type=_fraction,
        default=default.preempt_budget,
        metavar="SHARE",
        help="Share of its own prefill time by which a running prompt may be delayed by short ones "
        f"that pass it, 0 for none (default: {default.preempt_budget}).",
    )
    group.add_argument(
        "--cdsp-decode-share",
        type=_fraction,
        default=None,
        metavar="SHARE",
        help="Without --disaggregation-mode: share of an instance's time that goes to decode while "
        f"a chunk runs beside it, above 0 and at most 0.5 (default: {USUAL_SHARE} while as many "
        "requests decode as prompts wait, less by the square of their ratio where more wait).",
    )
    group.add_argument(
        "--cdsp-tpot-target",
        type=_fraction,
        default=None,
        metavar="SECONDS",
        help="Without --disaggregation-mode: time between two tokens of a request that decodes "
        "while a chunk runs beside it, in place of --cdsp-decode-share, which follows from it and "
        "from what a decode step takes.",
    )
    group.add_argument(
        "--cdsp-roles",
        default=default.roles,
        metavar="ROLES",
        help="Without --disaggregation-mode: what the instances do, by count: with 6p2d the first "
        "6 prefill only and 2 decode only, with 2p1d1b the last does both (default: all do both). "
        "POST /cdsp/update changes it at run time.",
    )
    group.add_argument(
        "--cdsp-max-shard-tokens",
        type=_integer,
        default=None,
        metavar="TOKENS",
        help="Most tokens that an instance computes at once, as activations take memory; a longer "
        "chunk runs as several (default: what a GPU has free at start allows, no limit on CPUs).",
    )
    group.add_argument(
        "--cdsp-latency-model",
        default=None,
        metavar="FILE",
        help="Latency model (JSON). Without it the server measures its own pool at its first start "
        "and keeps that model for the next ones.",
    )
    group.add_argument(
        "--cdsp-cache",
        default=None,
        metavar="DIR",
        help="Folder of kept latency models (default: SGLANG_CDSP_CACHE, or sglang-cdsp in the "
        "user's cache directory).",
    )
    group.add_argument(
        "--cdsp-measure-anew",
        action="store_true",
        help="Measure the pool even where an earlier start has kept its latency model.",
    )
    group.add_argument(
        "--cdsp-prefix-cache",
        action="store_true",
        help="With --disaggregation-mode prefill: instances keep the KV of prompts that have ended "
        "while nobody needs the slots, and prompts start from it. Without --disaggregation-mode "
        "they do so anyway.",
    )
    group.add_argument(
        "--cdsp-instances-per-node",
        type=_integer,
        default=None,
        metavar="N",
        help="Instances that share a node, for the planner (default: the whole pool).",
    )
    group.add_argument(
        "--cdsp-plan-log",
        default=None,
        metavar="FILE",
        help="Append one JSON line per finished or failed request: plan, planned and real times.",
    )
    group.add_argument(
        "--cdsp-allow-request-plans",
        action="store_true",
        help="Let a request force its plan: "
        "sampling_params.custom_params.cdsp_plan = [[tokens, [instance, ...]], ...].",
    )
    group.add_argument(
        "--cdsp-decode-max-total-tokens",
        type=_integer,
        default=None,
        metavar="TOKENS",
        help="KV tokens that a decode server holds, if larger prompts are to be refused before it "
        "has made contact, or with Mooncake, which does not tell (default: what decode says).",
    )
    group.add_argument(
        "--cdsp-seat-timeout",
        type=_fraction,
        default=default.seat_timeout,
        metavar="SECONDS",
        help="How long a prompt that fits only with an instance which is coming back waits for it, "
        f"0 for not at all (default: {default.seat_timeout:g}).",
    )
    group.add_argument(
        "--cdsp-any-sglang-version",
        action="store_true",
        help=f"Serve on an untested SGLang release (tested: {', '.join(TESTED_SGLANG_VERSIONS)}).",
    )


def parse_sp_sizes(text: str) -> tuple[int, ...]:
    """Parse ``"1,2,4"``; returns ascending distinct sizes.

    Raises:
        CdspConfigError: if an entry is not a positive integer.
    """
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        sizes = (0,)
    if any(size < 1 for size in sizes):
        raise CdspConfigError(
            f"--cdsp-sp-sizes {text!r} is not a list of positive integers; write for example 1,2,4"
        )
    return sizes


_POSITIVE = {
    "stock_tokens": "it is a number of tokens, try 1024",
    "max_shard_tokens": "leave it out for what the memory allows",
    "min_chunk": "it is a number of tokens, try 256",
    "instances_per_node": "leave it out if all instances share a node",
    "decode_max_total_tokens": "leave it out to hear it from decode",
}


_PARSED: dict[str, Callable[[str], Any]] = {"policy": find, "roles": parse_roles}
"""Values with a form of their own, and what reads it."""


def from_namespace(namespace: argparse.Namespace) -> tuple[CdspArgs | None, list[str]]:
    """Read the group's values from a parsed command line.

    Returns:
        The options, None when ``--cdsp`` was not given, and what is wrong with the values by
        themselves. A wrong value is replaced by its default, so that the other checks can go on.
    """
    names = [field.name for field in fields(CdspArgs) if not field.name.startswith("admin")]
    values = {name: getattr(namespace, f"cdsp_{name}", None) for name in names}
    default = CdspArgs()
    problems = list(getattr(namespace, UNKNOWN_FLAGS, ()))
    if not getattr(namespace, "cdsp", False):
        values["sp_sizes"], values["roles"] = values["sp_sizes"] or (), values["roles"] or ""
        given = [n for n in names if values[n] is not None and values[n] != getattr(default, n)]
        if given:
            flags = ", ".join(_flag(name) for name in given)
            problems.append(f"{flags} given without --cdsp; add --cdsp or remove them")
        return None, problems
    if values["decode_share"] is not None and values["tpot_target"] is not None:
        problems.append(
            "--cdsp-decode-share and --cdsp-tpot-target are two ways to say the same; give one"
        )
    kept: dict[str, Any] = {}
    for name, value in values.items():
        try:
            read = _read(name, value)
        except CdspConfigError as error:
            problems += error.problems
            continue
        if read is not None:
            kept[name] = read
    return CdspArgs(**kept), problems


def _flag(name: str) -> str:
    return "--cdsp-" + name.replace("_", "-")


def _read(name: str, value: Any) -> Any:
    """One flag's value, None for one that was not given.

    Raises:
        CdspConfigError: no server could use it.
    """
    flag = _flag(name)
    if name == "sp_sizes":
        return parse_sp_sizes(value or "")
    if value is None:
        return None
    if isinstance(value, Unread):
        raise CdspConfigError(f"{flag} {value.text!r} is not {value.wanted}")
    if name in _PARSED and value:
        try:
            _PARSED[name](value)
        except OptionError as error:
            raise CdspConfigError(f"{flag}: {error}") from None
    if name == "improvement_rate" and not 0.0 <= value < 1.0:
        raise CdspConfigError(f"{flag} {value} is outside [0, 1); try 0.1")
    if name == "preempt_budget" and not 0.0 <= value <= 10.0:
        raise CdspConfigError(f"{flag} {value} is outside [0, 10]; try 0.2, or 0 for none")
    if name == "decode_share" and not 0.01 <= value <= 0.5:
        raise CdspConfigError(
            f"{flag} {value} is outside [0.01, 0.5]; beyond it long prompts never end; "
            f"try {USUAL_SHARE}"
        )
    if name == "tpot_target" and not 0.0 < value < math.inf:
        raise CdspConfigError(f"{flag} {value} is no number of seconds above 0; try 0.1")
    if name == "seat_timeout" and not 0.0 <= value < math.inf:
        raise CdspConfigError(f"{flag} {value} is no number of seconds from 0 up; try 120")
    if name in _POSITIVE and value < 1:
        raise CdspConfigError(f"{flag} {value} must be at least 1; {_POSITIVE[name]}")
    return value


def active_args() -> CdspArgs | None:
    """The options in force in this process, or None when CDSP is off."""
    text = os.environ.get(ENV_VAR)
    return CdspArgs.from_json(text) if text else None


def activate(args: CdspArgs) -> None:
    """Make ``args`` the options of this process and of every process it spawns."""
    os.environ[ENV_VAR] = args.to_json()


def deactivate() -> None:
    """This process, and what it spawns from here on, has no pool any more."""
    os.environ.pop(ENV_VAR, None)


def with_admin(args: CdspArgs) -> CdspArgs:
    """``args`` with an address of its own for the controller's admin socket, and a key to it.

    An abstract socket name: no port to collide with, no file to leave behind. Every user of the
    machine can see and reach it, so the controller answers only who knows the key.
    """
    name = f"ipc://@sglang-cdsp-{uuid.uuid4().hex}"
    return replace(args, admin=name, admin_key=secrets.token_hex(16))
