"""The ``--cdsp`` flags: their defaults, their checks, and how they reach child processes.

SGLang copies only its own declared fields from the command line, so the plugin keeps its
options itself: the launching process parses them here and leaves them in one environment
variable, which every spawned SGLang process inherits.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import uuid
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from sglang_cdsp.planner.errors import OptionError
from sglang_cdsp.planner.policies.options import DEFAULT_IMPROVEMENT_RATE, DEFAULT_MIN_CHUNK
from sglang_cdsp.planner.policies.registry import DEFAULT_POLICY, POLICY_HELP, find

ENV_VAR = "SGLANG_CDSP_CONFIG"

# Releases whose hook targets were read and whose servers were run (see docs/structure.md).
TESTED_SGLANG_VERSIONS = ("0.5.21",)


class CdspConfigError(ValueError):
    """An option, or a combination of options, that the pool cannot serve; names the remedy."""


@dataclass(frozen=True)
class CdspArgs:
    """Options of the pool, as given on the command line.

    Attributes:
        policy: name of the planning policy, see ``sglang_cdsp.planner``.
        sp_sizes: candidate SP sizes in ascending order; empty means powers of two up to the pool.
        improvement_rate: fraction by which a larger SP size must cut TTFT, in [0, 1).
        min_chunk: smallest planned chunk in tokens (the last chunk of a prompt may be shorter).
        latency_model: path of a latency model file; None means the server measures itself.
        instances_per_node: instances that share a node; None means the whole pool.
        plan_log: file that receives one JSON line per ended request; None means no log.
        allow_request_plans: accept ``sampling_params.custom_params.cdsp_plan``.
        any_sglang_version: serve on an SGLang release that was not tested.
        decode_max_total_tokens: KV tokens that a decode server holds; None to hear it from decode.
        improvement_rates: file that maps arrival rates to improvement rates, None for one rate.
        admin: where the controller answers the HTTP process; chosen at start.
        admin_key: what the HTTP process proves itself with; chosen at start.
    """

    policy: str = DEFAULT_POLICY
    sp_sizes: tuple[int, ...] = ()
    improvement_rate: float = DEFAULT_IMPROVEMENT_RATE
    min_chunk: int = DEFAULT_MIN_CHUNK
    latency_model: str | None = None
    instances_per_node: int | None = None
    plan_log: str | None = None
    allow_request_plans: bool = False
    any_sglang_version: bool = False
    decode_max_total_tokens: int | None = None
    improvement_rates: str | None = None
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
        "CDSP", "Chunkwise Dynamic Sequence Parallelism for the prefill server (sglang-cdsp)"
    )
    group.add_argument(
        "--cdsp",
        action="store_true",
        help="Run the --dp-size prefill instances as one elastic sequence-parallel pool.",
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
        type=float,
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
        type=int,
        default=default.min_chunk,
        metavar="TOKENS",
        help=f"Smallest planned chunk in tokens (default: {default.min_chunk}).",
    )
    group.add_argument(
        "--cdsp-latency-model",
        default=None,
        metavar="FILE",
        help="Latency model (JSON). Without it the server measures its own pool at start.",
    )
    group.add_argument(
        "--cdsp-instances-per-node",
        type=int,
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
        type=int,
        default=None,
        metavar="TOKENS",
        help="KV tokens that a decode server holds, if larger prompts are to be refused before it "
        "has made contact, or with Mooncake, which does not tell (default: what decode says).",
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


def from_namespace(namespace: argparse.Namespace) -> CdspArgs | None:
    """Read the group's values from a parsed command line; None when ``--cdsp`` was not given.

    Raises:
        CdspConfigError: for a value that no server could use, or for ``--cdsp-*`` options
            without ``--cdsp``.
    """
    names = [field.name for field in fields(CdspArgs) if not field.name.startswith("admin")]
    values = {name: getattr(namespace, f"cdsp_{name}", None) for name in names}
    values["sp_sizes"] = parse_sp_sizes(values["sp_sizes"] or "")
    default = CdspArgs()
    if not getattr(namespace, "cdsp", False):
        given = [n for n in names if values[n] is not None and values[n] != getattr(default, n)]
        if given:
            flags = ", ".join("--cdsp-" + name.replace("_", "-") for name in given)
            raise CdspConfigError(f"{flags} given without --cdsp; add --cdsp or remove them")
        return None
    args = CdspArgs(**{k: v for k, v in values.items() if v is not None})
    try:
        find(args.policy)
    except OptionError as error:
        raise CdspConfigError(f"--cdsp-policy: {error}") from None
    if not 0.0 <= args.improvement_rate < 1.0:
        raise CdspConfigError(
            f"--cdsp-improvement-rate {args.improvement_rate} is outside [0, 1); try 0.1"
        )
    if args.min_chunk < 1:
        raise CdspConfigError(f"--cdsp-min-chunk {args.min_chunk} must be at least 1 token")
    if args.instances_per_node is not None and args.instances_per_node < 1:
        raise CdspConfigError("--cdsp-instances-per-node must be at least 1")
    if args.decode_max_total_tokens is not None and args.decode_max_total_tokens < 1:
        raise CdspConfigError("--cdsp-decode-max-total-tokens must be at least 1")
    if args.improvement_rates is not None and not Path(args.improvement_rates).is_file():
        raise CdspConfigError(f"--cdsp-improvement-rates {args.improvement_rates}: no such file")
    if args.latency_model is not None and not Path(args.latency_model).is_file():
        raise CdspConfigError(
            f"--cdsp-latency-model {args.latency_model}: no such file; write one with "
            "'python -m sglang_cdsp profile' or leave the option out"
        )
    return args


def active_args() -> CdspArgs | None:
    """The options in force in this process, or None when CDSP is off."""
    text = os.environ.get(ENV_VAR)
    return CdspArgs.from_json(text) if text else None


def activate(args: CdspArgs) -> None:
    """Make ``args`` the options of this process and of every process it spawns."""
    os.environ[ENV_VAR] = args.to_json()


def with_admin(args: CdspArgs) -> CdspArgs:
    """``args`` with an address of its own for the controller's admin socket, and a key to it.

    An abstract socket name: no port to collide with, no file to leave behind. Every user of the
    machine can see and reach it, so the controller answers only who knows the key.
    """
    name = f"ipc://@sglang-cdsp-{uuid.uuid4().hex}"
    return replace(args, admin=name, admin_key=secrets.token_hex(16))
