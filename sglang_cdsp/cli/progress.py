"""Progress of what takes long: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

LINE_EVERY_S = 20.0

Item = TypeVar("Item")


class Progress:
    """Counts what is done, on stderr. Use as a context, or with `over`.

    On a terminal it is a bar that vanishes at the end; elsewhere (a log, a pipe) one line every
    `LINE_EVERY_S` seconds, none for what takes less.
    """

    def __init__(
        self,
        name: str,
        total: int | None = None,
        *,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`total`: how many there will be, None if that is not known."""
        self._name, self._total = name, total
        self._file = file or sys.stderr
        self._clock = clock
        self._done = 0
        self._start_s = self._said_s = clock()
        self._bars = _bars(name, total, self._file) if self._file.isatty() else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    @property
    def done(self) -> int:
        """How many are done."""
        return self._done

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        if self._bars is not None:
            self._bars.advance(self._bars.task_ids[0], count)
            return
        now_s = self._clock()
        if now_s - self._said_s >= LINE_EVERY_S:
            self._said_s = now_s
            print(self._line(now_s - self._start_s), file=self._file, flush=True)

    def _line(self, spent_s: float) -> str:
        if self._total is None:
            return f"{self._name}: {self._done} done in {spent_s:.0f} s"
        left_s = spent_s / self._done * (self._total - self._done) if self._done else 0.0
        about = f", about {left_s:.0f} s left" if self._done else ""
        return f"{self._name}: {self._done} of {self._total} done in {spent_s:.0f} s{about}"


def _bars(name: str, total: int | None, file: TextIO) -> Bars:
    """A bar on a terminal, shown from now until it is stopped, when it vanishes."""
    from rich import progress
    from rich.console import Console

    bars = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(file=file),
        transient=True,
    )
    bars.add_task(name, total=total)
    bars.start()
    return bars


def over(items: Iterable[Item], name: str, total: int | None = None) -> Iterator[Item]:
    """The items, with their progress; `total` where the items cannot tell their number."""
    count = len(items) if total is None and isinstance(items, Sized) else total
    with Progress(name, count) as progress:
        for item in items:
            yield item
            progress.update()
