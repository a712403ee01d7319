"""Orders and reports about running requests that move from one instance to another."""

from __future__ import annotations

from sglang.srt.managers.io_struct import BaseReq

from sglang_cdsp.protocol.reporting import (
    Report,
)
from sglang_cdsp.protocol.values import (
    OutputState,
)


class MoveInOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Get ready to go on with request ``seq``, which ``source`` is home of; the request follows.

    Attributes:
        lane, serial: the buffers of the links that are promised to the move, as in ``GoOrder``.
        ahead: KV rows, from the first on, that come before the request itself, in whole pages. What
            this instance has cached of these does not travel.
    """

    seq: int
    source: int
    lane: int
    serial: int
    ahead: int = 0


class MoveOutOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Take request ``seq`` out of the running batch between two steps and send its KV.

    It leaves when all members of its plan are done with it and ``ahead`` rows have gone ahead.

    Attributes:
        target: the instance that goes on with it, which is ready.
        lane, serial, ahead: as in ``MoveInOrder``.
        held: as in ``MoveReady``; these rows are not sent.
    """

    seq: int
    target: int
    lane: int
    serial: int
    ahead: int = 0
    held: int = 0


class MovedOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Request ``seq`` has left its source, and its KV is on its way.

    Attributes:
        rows: its KV rows, of all its tokens but the last.
        output: what else there is of it.
        ahead: of these rows, so many do not follow: they went ahead, or the target had them cached
            (``MoveReady.held``). Where what went ahead was in vain only the latter.
    """

    seq: int
    rows: int
    output: OutputState
    ahead: int = 0


class MoveEndOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """The move of request ``seq`` is over for this instance.

    ``moved``: it goes on at the target, and its source frees what it holds. Else the source goes on
    with it, and the target forgets it. A target that goes on with it already has said so
    (``MovedIn``), and takes no notice; so its source hears of the end after the target has.
    """

    seq: int
    moved: bool


class MoveReady(Report, frozen=True, kw_only=True):
    """The instance could go on with request ``seq`` at once; ``MoveInOrder`` asked it to.

    Attributes:
        held: KV rows that it has cached, from the first on, in whole pages; they are locked there
            until the request is no longer its own. Of those that go ahead at most.
    """

    seq: int
    held: int = 0


class MovedOut(Report, frozen=True, kw_only=True):
    """The instance took request ``seq`` out of its batch.

    Attributes:
        rows, output, ahead: as in ``MovedOrder``.
        start_s, end_s: of a one-instance request, as in ``StockEnded``.
    """

    seq: int
    rows: int
    output: OutputState
    ahead: int = 0
    start_s: float | None = None
    end_s: float | None = None


class MovedIn(Report, frozen=True, kw_only=True):
    """The instance has all of request ``seq`` and goes on with it."""

    seq: int


class MoveFailed(Report, frozen=True, kw_only=True):
    """The instance cannot do its part of a move, and has nothing of the move any more.

    But a source that has taken the request out keeps it until it hears how the move has ended.

    Attributes:
        stays: the request has a state that cannot be moved, now or later.
    """

    seq: int
    error: str
    stays: bool = False


class MoveEnded(Report, frozen=True, kw_only=True):
    """The instance has nothing of a move any more; its source has freed the request or goes on."""

    seq: int
