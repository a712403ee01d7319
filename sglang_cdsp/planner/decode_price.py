"""The decode share by its price: what those that run gain against what those that wait lose.

Exchange a decode step of D seconds with a piece of the chunk beside it that takes as long: each of
the r requests that run there gets a token D sooner, and the first tokens of all w that wait for the
instance's chunk time, the chunk's own among them, come D later. In sums of latencies that pays
while r outweighs w. A step takes almost as long for one request as for many, so steps that few
requests get while many prompts wait are lost to throughput, too: the same tokens would come in
fuller batches later.

So the share is the usual one while at least as many run as wait, and less by the square of r / w
where more wait. It does not go to zero: those that run hear from their instance once in a longest
stretch, and so do those that begin to run while the chunk does.
"""

from __future__ import annotations

from sglang_cdsp.planner.stretches import LEAST_SHARE, LONGEST_S

USUAL_SHARE = 0.2
"""A running request feels a stretch of four decode steps beside a chunk."""


def priced_share(running: float, waiting: float, step_s: float = 0.0) -> float:
    """The decode share of a chunk, from `LEAST_SHARE` to `USUAL_SHARE`.

    Args:
        running: requests that decode on the chunk's instance; where there is none, one is reckoned
            with that comes while the chunk runs.
        waiting: prompts that wait for the instance's chunk time, the chunk's own among them.
        step_s: a decode step there, seconds; 0 where none was measured.

    Returns:
        Never less than the share whose stretch is `LONGEST_S`, below which nothing is gained, but
        where the usual one is.
    """
    least = max(LEAST_SHARE, step_s / (step_s + LONGEST_S))
    price = (max(running, 1.0) / max(waiting, 1.0)) ** 2
    return min(max(least, USUAL_SHARE * price), USUAL_SHARE)
