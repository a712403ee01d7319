"""A thread that posts writes to decode, so that the engine's loop does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

Job = Callable[[], None]


class Poster(Protocol):
    """Runs jobs in the order in which they come. A job raises nothing."""

    def put(self, job: Job) -> None:
        """Run ``job`` soon; never blocks."""


class PostingThreads:
    """Threads that post writes and sleep while there are none; they poll nothing."""

    def __init__(self, threads: int = 1, prepare: Job = lambda: None) -> None:
        """``prepare`` runs first in each thread; with one thread the order of posts is kept."""
        self._count = threads
        self._prepare = prepare
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def put(self, job: Job) -> None:
        """Run ``job`` in a thread, behind those that came before; never blocks."""
        self._jobs.put(job)
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, name=f"cdsp-kv-post-{number}", daemon=True)
                for number in range(self._count)
            ]
            for thread in self._threads:
                thread.start()

    def _work(self) -> None:
        self._prepare()
        while True:
            self._jobs.get()()
