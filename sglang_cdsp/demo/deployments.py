"""The servers of the demonstration: the pool in its two forms, and stock SGLang."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from sglang_cdsp.testing.stack import Deployment, disaggregated, one_server, single

KV_TOKENS = 20_000
"""KV slots of an instance: the burst's longest prompt fits, all of them do not."""
DECODE_KV_TOKENS = 80_000
"""KV slots of a decode server, which has them all at once."""


def instances() -> int:
    """How many the demonstration has unless told: one a core, at least two, at most eight."""
    return min(max(os.cpu_count() or 1, 2), 8)


def pool(
    checkpoint: Path,
    size: int,
    plan_log: Path,
    *,
    port: int | None = None,
    flags: Sequence[str] = (),
) -> Deployment:
    """One server that prefills and decodes, of ``size`` instances."""
    return one_server(checkpoint, flags=_chosen(size, plan_log, flags), port=port)


def scaled_out(
    checkpoint: Path,
    size: int,
    plan_log: Path,
    *,
    port: int | None = None,
    flags: Sequence[str] = (),
) -> Deployment:
    """A prefill pool of ``size`` instances, a stock decode server, and SGLang's router."""
    return disaggregated(
        checkpoint,
        prefill_flags=("--cdsp", *_chosen(size, plan_log, flags)),
        decode_flags=("--max-total-tokens", str(DECODE_KV_TOKENS), *_pages()),
        router_port=port,
    )


def stock(checkpoint: Path, size: int, *, port: int | None = None) -> Deployment:
    """Stock SGLang with ``size`` replicas, as one server."""
    return single(checkpoint, flags=_sized(size), port=port)


def _sized(size: int) -> tuple[str, ...]:
    return ("--dp-size", str(size), "--max-total-tokens", str(KV_TOKENS))


def _chosen(size: int, plan_log: Path, flags: Sequence[str]) -> tuple[str, ...]:
    """A pool's flags in either form."""
    planned = ("--cdsp-plan-log", str(plan_log.resolve()), "--cdsp-allow-request-plans")
    return (*_sized(size), *_pages(), *planned, *flags)


def _pages() -> tuple[str, ...]:
    """The page size that a pool chooses on GPUs: stock decode does not know, and wants the same."""
    # Here, since it needs torch: what is lacking is told before.
    from sglang_cdsp.launch.defaults import open_settings

    chosen = open_settings(argparse.Namespace(page_size=None)).get("page_size")
    return () if chosen is None else ("--page-size", str(chosen))
