"""Posting without threads: at once, or when a test says so."""

from __future__ import annotations

from collections.abc import Callable


class InlinePoster:
    """Posts at once, in the thread that asks."""

    def put(self, job: Callable[[], None]) -> None:
        job()


class HeldPoster:
    """Posts when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def put(self, job: Callable[[], None]) -> None:
        self.jobs.append(job)

    def run(self) -> None:
        """Everything that waits is posted."""
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()
