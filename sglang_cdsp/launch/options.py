"""The values of the ``--cdsp`` flags against the pool's size and the files that they name.

Everything here is known from the command line and its files, so it is told before weights are
loaded or the pool is measured, all of it at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_cdsp.args import CACHE_VAR, CdspArgs
from sglang_cdsp.form import Form
from sglang_cdsp.launch.outside_policy import outside_problem
from sglang_cdsp.planner.errors import OptionError, PlannerError
from sglang_cdsp.planner.latency import LatencyModel
from sglang_cdsp.planner.policies.options import default_sp_sizes
from sglang_cdsp.planner.policies.registry import needed_sizes
from sglang_cdsp.planner.regulator import make_regulator, read_rates
from sglang_cdsp.planner.roles import roles_of


@dataclass(frozen=True)
class Asked:
    """What a command line asks for, as far as the checks read it.

    Attributes:
        cdsp: our options.
        instances: ``--dp-size``.
        page_size: ``--page-size``, None where it is left to SGLang.
        decodes: whether the server decodes itself.
    """

    cdsp: CdspArgs
    instances: int
    page_size: int | None
    decodes: bool = False

    @property
    def sp_sizes(self) -> tuple[int, ...]:
        """The candidate SP sizes that the pool will use; those beyond the pool are told apart."""
        sizes = tuple(size for size in self.cdsp.sp_sizes if size <= self.instances)
        return sizes or default_sp_sizes(max(1, self.instances))


def problems(cdsp: CdspArgs, server_args: Any) -> list[str]:
    """Everything that is wrong, one line each with the remedy; nothing for a good command line.

    Args:
        server_args: SGLang's, as given on the command line.
    """
    decodes = server_args.disaggregation_mode == Form.ONE_SERVER.value
    asked = Asked(cdsp, int(server_args.dp_size), server_args.page_size, decodes)
    return [line for check in CHECKS for line in check(asked)]


def _sizes(asked: Asked) -> list[str]:
    beyond = [size for size in asked.cdsp.sp_sizes if size > asked.instances]
    if not beyond:
        return []
    return [
        f"--cdsp-sp-sizes {beyond} exceed the pool of {asked.instances} instances; "
        "lower them or raise --dp-size"
    ]


def _nodes(asked: Asked) -> list[str]:
    per_node = asked.cdsp.instances_per_node
    if per_node is None or asked.instances % per_node == 0:
        return []
    return [
        f"--cdsp-instances-per-node {per_node} does not divide the pool of {asked.instances} "
        "instances; give a divisor of --dp-size"
    ]


def _chunk(asked: Asked) -> list[str]:
    tokens, page = asked.cdsp.min_chunk, asked.page_size
    if page is None or tokens >= page or tokens == CdspArgs().min_chunk:
        return []
    return [
        f"--cdsp-min-chunk {tokens} is less than a page of {page} tokens, and chunks are whole "
        "pages; raise it or lower --page-size"
    ]


def _policy(asked: Asked) -> list[str]:
    """The policy's own SP sizes against the pool and against what is measured of it at start."""
    policy, instances = asked.cdsp.policy, asked.instances
    sizes = needed_sizes(policy, instances)
    beyond = [size for size in sizes if size > instances]
    if beyond:
        return [
            f"--cdsp-policy {policy}: groups of {beyond[0]} instances exceed the pool of "
            f"{instances}; lower it or raise --dp-size"
        ]
    least = min(asked.sp_sizes)
    short = [size for size in sizes if size < least]
    if short and asked.cdsp.latency_model is None:
        return [
            f"--cdsp-policy {policy} needs SP size {short[0]}, but the pool is measured from the "
            f"least of --cdsp-sp-sizes up, which is {least}; add {short[0]} to --cdsp-sp-sizes"
        ]
    return []


def _outside_policy(asked: Asked) -> list[str]:
    policy, instances = asked.cdsp.policy, max(1, asked.instances)
    problem = outside_problem(policy, instances, asked.sp_sizes, asked.page_size or 1)
    return [f"--cdsp-policy {policy}: {problem}"] if problem else []


def _latency_model(asked: Asked) -> list[str]:
    path = asked.cdsp.latency_model
    if path is None:
        return []
    try:
        model = LatencyModel.load(path)
    except PlannerError as error:
        return [
            f"--cdsp-latency-model {error}; write one with 'python -m sglang_cdsp profile' or "
            "leave the option out"
        ]
    low, high = model.sp_sizes[0], model.sp_sizes[-1]
    policy = (s for s in needed_sizes(asked.cdsp.policy, asked.instances) if s <= asked.instances)
    missing = sorted(s for s in {*asked.sp_sizes, *policy} if not low <= s <= high)
    if not missing:
        return []
    given = "--cdsp-sp-sizes" if asked.cdsp.sp_sizes else f"--dp-size {asked.instances}"
    return [
        f"--cdsp-latency-model {path} covers SP sizes {low} to {high}, but {given} and "
        f"--cdsp-policy {asked.cdsp.policy} need {missing}; profile them, name others with "
        "--cdsp-sp-sizes, or leave the option out"
    ]


def _cache(asked: Asked) -> list[str]:
    found = []
    if asked.cdsp.measure_anew and asked.cdsp.latency_model is not None:
        found.append(
            "--cdsp-measure-anew has nothing to measure where --cdsp-latency-model gives a model; "
            "remove one of them"
        )
    named = (("--cdsp-cache", asked.cdsp.cache), (CACHE_VAR, os.environ.get(CACHE_VAR)))
    flag, folder = next(((flag, text) for flag, text in named if text), ("", ""))
    if folder and (reason := _unusable(Path(folder).expanduser())):
        found.append(f"{flag} {folder}: {reason}; name a folder that you may write to")
    return found


def _unusable(folder: Path) -> str:
    """Why nothing can be kept in a folder, which need not be there yet; "" if it can."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written"


def _rates(asked: Asked) -> list[str]:
    path = asked.cdsp.improvement_rates
    if path is None:
        return []
    flag = "--cdsp-improvement-rates"
    form = 'write {"1.0": 0.1, "2.0": 0.3}, or let \'python -m sglang_cdsp tune\' write it'
    try:
        table = read_rates(Path(path), flag)
    except PlannerError as error:
        return [f"{error}; {form}"]
    try:
        make_regulator(asked.sp_sizes, asked.cdsp.improvement_rate, table)
    except PlannerError as error:
        return [f"{flag} {path}: {error}; {form}"]
    return []


def _form(asked: Asked) -> list[str]:
    """Flags of the other form of the pool, which would have no effect."""
    if asked.decodes and asked.cdsp.decode_max_total_tokens is not None:
        return [
            "--cdsp-decode-max-total-tokens is about decode servers, and without "
            "--disaggregation-mode this server decodes itself; remove it"
        ]
    if asked.decodes and asked.cdsp.prefix_cache:
        return [
            "--cdsp-prefix-cache is for a prefill server: without --disaggregation-mode prefixes "
            "are reused anyway; remove it"
        ]
    if asked.decodes:
        return []
    default = CdspArgs()
    return [
        f"--cdsp-{name.replace('_', '-')} is for one server that decodes what it prefills; remove "
        "it, or remove --disaggregation-mode"
        for name in ("decode_share", "tpot_target", "roles")
        if getattr(asked.cdsp, name) != getattr(default, name)
    ]


def _roles(asked: Asked) -> list[str]:
    """The roles against the pool, and the policy's own SP sizes against who prefills."""
    if not asked.decodes:
        return []
    try:
        prefill = len(roles_of(asked.cdsp.roles, asked.instances).prefill)
    except OptionError as error:
        return [f"--cdsp-roles: {error}"]
    beyond = [s for s in needed_sizes(asked.cdsp.policy, asked.instances) if s > prefill]
    if not beyond or beyond[0] > asked.instances:
        return []
    return [
        f"--cdsp-policy {asked.cdsp.policy}: groups of {beyond[0]} instances exceed the {prefill} "
        f"that --cdsp-roles {asked.cdsp.roles} lets prefill; lower it or let more of them prefill"
    ]


def _plan_log(asked: Asked) -> list[str]:
    path = asked.cdsp.plan_log
    if path is None:
        return []
    try:
        try_to_append(Path(path))
    except OSError as error:
        return [
            f"--cdsp-plan-log {path} cannot be written ({error.strerror or error}); name a file "
            "in a folder that you may write to"
        ]
    return []


def try_to_append(path: Path) -> None:
    """Open a file for appending, with its folders, and leave behind nothing that was not there.

    Raises:
        OSError: it cannot be done.
    """
    absent = [folder for folder in path.parents if not folder.exists()]
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without O_NONBLOCK a pipe that nobody reads would keep the server waiting.
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666))
        if not existed:
            path.unlink()
    finally:
        for folder in absent:
            with contextlib.suppress(OSError):
                folder.rmdir()


CHECKS: tuple[Callable[[Asked], list[str]], ...] = (
    _sizes,
    _nodes,
    _chunk,
    _policy,
    _outside_policy,
    _latency_model,
    _cache,
    _rates,
    _form,
    _roles,
    _plan_log,
)
