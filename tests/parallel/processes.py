"""Processes for tests of links, without torch's import in each of them."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

PRELOADED = ["torch", "tests.parallel.links.remote", "tests.parallel.ring_worker"]
"""What all of them import, none of which opens a link or starts a thread."""


def context() -> ForkServerContext:
    """Starts processes as forks of one that has imported ``PRELOADED`` and done nothing else.

    They are as fresh as spawned ones, NIXL and its variables included, and there in no time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context
