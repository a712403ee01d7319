"""The pool measures itself at start when no latency model was given.

For each SP size a few two-chunk plans run on the real instances: chunk lengths double until one
takes long enough to say something about the next. That is a first idea of the pool, good enough
to plan with; ``python -m sglang_cdsp profile`` measures properly.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence

import zmq

from sglang_cdsp.controller.lifecycle import Lifecycle
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.reports import read_reports
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.fit import Sample, fit_coefficients
from sglang_cdsp.planner.latency import MEASURED_KEY, LatencyModel
from sglang_cdsp.planner.types import Plan, PlannedChunk

logger = logging.getLogger(__name__)

FIRST_LENGTH = 64
LAST_LENGTH = 16384
LONG_ENOUGH_S = 0.25
MIN_LENGTHS = 4
POLL_MS = 100
PROBE_TIMEOUT_S = 300.0


def probe_plan(length: int, size: int) -> Plan:
    """Two chunks of ``length`` tokens on instances ``0..size-1``; its times mean nothing."""
    group = tuple(range(size))
    chunk = PlannedChunk(length, group, 0.0, 0.0)
    return Plan(chunks=(chunk, chunk), ttft_s=0.0, policy="probe")


def probe_lengths(longest: int, page_size: int) -> Iterator[int]:
    """Chunk lengths to try, in whole pages, shortest first."""
    length = -(-FIRST_LENGTH // page_size) * page_size
    while 2 * length <= longest and length <= LAST_LENGTH:
        yield length
        length *= 2


def probe_runner(lifecycle: Lifecycle, reports: zmq.Socket[bytes]) -> Callable[[Plan], PoolRequest]:
    """What runs one probe on the pool to its end.

    It raises ``RuntimeError`` when that takes longer than ``PROBE_TIMEOUT_S``.
    """

    def run(plan: Plan) -> PoolRequest:
        request = PoolRequest("cdsp-probe", None, plan.tokens, time.monotonic())
        lifecycle.on_probe(request, plan)
        deadline = time.monotonic() + PROBE_TIMEOUT_S
        while request.phase is not Phase.ENDED:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"a probe of {plan.tokens} tokens on instances {list(plan.instances)} has not "
                    f"ended in {PROBE_TIMEOUT_S:.0f} s; see what they logged"
                )
            if reports.poll(POLL_MS):
                read_reports(reports, lifecycle)
        return request

    return run


def samples_of(request: PoolRequest) -> list[Sample]:
    """What a finished probe measured, one sample per chunk.

    Raises:
        RuntimeError: the probe failed.
    """
    if request.error or request.plan is None:
        raise RuntimeError(f"measuring the pool failed: {request.error}")
    samples: list[Sample] = []
    history = 0
    for chunk, times in zip(request.plan.chunks, request.times, strict=True):
        assert times.start_s is not None
        assert times.end_s is not None
        seconds = max(times.end_s - times.start_s, 1e-6)
        samples.append(Sample(chunk.sp_size, history, chunk.tokens, seconds))
        history += chunk.tokens
    return samples


def calibrate(
    sizes: Sequence[int],
    longest: int,
    page_size: int,
    run: Callable[[Plan], PoolRequest],
    *,
    model: str,
    device: str,
    expands: bool = False,
) -> LatencyModel:
    """Measure the pool and fit Equation 1.

    Args:
        sizes: SP sizes to measure.
        longest: longest prompt that SP size 1 can hold, in tokens.
        run: runs a probe to its end.
        model, device: what is measured.
        expands: see ``fit_coefficients``.

    Raises:
        RuntimeError: a probe failed, or the pool holds too few tokens to measure.
    """
    rows = []
    longest_measured = 0
    for size in sizes:
        samples: list[Sample] = []
        for index, length in enumerate(probe_lengths(longest, page_size)):
            plan = probe_plan(length, size)
            if index == 0:
                run(plan)  # first use of buffers and links
            measured = samples_of(run(plan))
            samples += measured
            longest_measured = max(longest_measured, plan.tokens)
            if measured[0].seconds > LONG_ENOUGH_S and index + 1 >= MIN_LENGTHS:
                break
        try:
            rows.append((size, fit_coefficients(samples, expands=expands)))
        except ValueError as error:
            raise RuntimeError(
                f"the pool cannot be measured at SP size {size}: {error}; give --cdsp-latency-model"
            ) from error
        logger.info("measured SP size %d: %d samples, up to %s", size, len(samples), samples[-1])
    about = {
        "method": "measured at server start, all samples fitted",
        MEASURED_KEY: longest_measured,
    }
    return LatencyModel(tuple(rows), model, device, fit=about)


def measured_model(
    sizes: Sequence[int],
    longest: int,
    page_size: int,
    run: Callable[[Plan], PoolRequest],
    *,
    model: str,
    device: str,
    expands: bool = False,
) -> LatencyModel:
    """Measure a pool that serves nobody yet; ``run`` runs a probe to its end.

    Raises:
        RuntimeError: as :func:`calibrate`.
    """
    logger.info("no --cdsp-latency-model: measuring SP sizes %s on this pool", list(sizes))
    measured = calibrate(
        sizes, longest, page_size, run, model=model, device=device, expands=expands
    )
    logger.info("measured latency model: %s", json.dumps(measured.to_json()["sp"]))
    return measured
