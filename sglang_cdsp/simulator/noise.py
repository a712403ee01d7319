"""Chunks that take longer or shorter than the latency model says."""

from __future__ import annotations

import numpy as np

from sglang_cdsp.simulator.prefill import Noise

CHUNKS = 8
"""Factors drawn per request; a request of more chunks starts over."""


def make_noise(sigma: float, seed: int, requests: int) -> Noise:
    """The factor on a chunk's time, by the request's position among the arrivals and the chunk.

    Lognormal with mean 1: exp(sigma z - sigma^2 / 2). A request has the same factors under every
    policy, so that policies are compared under the same luck.
    """
    if not sigma:
        return lambda order, chunk: 1.0
    drawn = np.random.default_rng(seed).standard_normal((requests, CHUNKS))
    factors: list[list[float]] = np.exp(sigma * drawn - sigma * sigma / 2).tolist()
    return lambda order, chunk: factors[order][chunk % CHUNKS]
