"""The plan log: a JSON line for each ended request, and for what happens to the seats.

Lines are written off the controller's loop. Those of seats have a ``kind``, those of requests none.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import queue
import sys
import threading
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from sglang_cdsp.controller.effects import Observer
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.roles import Roles

logger = logging.getLogger(__name__)

# The file is renamed at this size, and so many renamed ones are kept.
MAX_BYTES = 256 * 1024 * 1024
BACKUPS = 3
MAX_WAITING_LINES = 10_000
CLOSED_WITHIN_S = 1.0


def record(request: PoolRequest, *, unix_offset_s: float) -> dict[str, Any]:
    """What is logged of a request.

    Times are seconds after its arrival, which is on the controller's monotonic clock and, as
    ``arrival_unix_s``, on the wall clock; None for what never came. ``bound_s`` is when the policy
    gave it its plan, ``kv_drained_s`` when all instances' writes to decode had ended. Planned times
    and the predicted TTFT are those of the last plan; ``replans`` tells of the changes. ``recalls``
    counts earlier plans. Nothing of them had run when an instance was lost, but in one server:
    there the last plan's chunks are the prompt and ``resumed_tokens`` of output after it, and where
    these are not 0, the first token was of an earlier plan and no TTFT is predicted.
    ``lost_instances`` are those that were lost since it was bound. ``passes``: its chunk ran
    between the layers of others. A chunk's ``passed_s`` is for how long it stood while others
    passed it, ``decode_share`` what decode was to get of its members' time meanwhile: 0 where
    nothing decodes, or does not beside it. Where the pool decodes itself, ``output_tokens`` were
    sent to its client, each once, until ``end_s``, when its last home was done with it. ``moves``
    are its ways to other instances, with its KV rows, those of them that were to go ahead and those
    that the target had cached. ``prefix`` tells of the cached tokens in front of its chunks, which
    its home had: how many some instance had, how many its plan reused and why, whether an earlier
    plan ``missed`` them, and the ``copy`` by which its home got them: from which instance, how many
    tokens, and what that was reckoned to take.

    Args:
        unix_offset_s: the wall clock's lead over the monotonic one, in seconds.
    """
    chunks: list[dict[str, Any]] = []
    offset = request.bound_s - request.arrival_s
    for index, chunk in enumerate(request.plan.chunks if request.plan else ()):
        times = request.times[index] if index < len(request.times) else None
        chunks.append(
            {
                "tokens": chunk.tokens,
                "instances": list(chunk.instances),
                "planned_start_s": offset + chunk.start_s,
                "planned_end_s": offset + chunk.end_s,
                "start_s": _since(times.start_s if times else None, request.arrival_s),
                "end_s": _since(times.end_s if times else None, request.arrival_s),
                "passed_s": times.passed_s if times else 0.0,
                "decode_share": times.decode_share if times else 0.0,
            }
        )
    resumed = len(request.resumes.tokens) if request.resumes else 0
    predicted = offset + request.plan.ttft_s if request.plan and not resumed else None
    return {
        "rid": request.rid,
        "prompt_tokens": request.prompt_tokens,
        "policy": request.policy,
        "arrival_s": request.arrival_s,
        "arrival_unix_s": request.arrival_s + unix_offset_s,
        "bound_s": request.bound_s - request.arrival_s if request.plan else None,
        "passes": request.plan.passes if request.plan else False,
        "ttft_s": {
            "predicted": predicted,
            "measured": _since(request.first_token_s, request.arrival_s),
        },
        "output_tokens": len(request.output.tokens) if request.decodes else None,
        "end_s": _since(request.last_token_s, request.arrival_s) if request.decodes else None,
        "kv_drained_s": _since(request.drained_s, request.arrival_s),
        "chunks": chunks,
        "prefix": _prefix(request),
        "recalls": request.recalls,
        "resumed_tokens": resumed,
        "lost_instances": sorted(request.lost),
        "replans": [change.to_dict(request.arrival_s) for change in request.replans],
        "moves": [move.to_dict(request.arrival_s) for move in request.moves],
        "outcome": request.outcome,
        "error": request.error,
    }


def _prefix(request: PoolRequest) -> dict[str, Any] | None:
    """What its plan took from a cache."""
    plan = request.plan
    if plan is None:
        return None
    return {
        "cached_tokens": plan.cached,
        "reused_tokens": plan.reused,
        "choice": plan.choice,
        "missed": request.missed,
        "copy": plan.copy.to_dict() if plan.copy is not None else None,
    }


def _since(at_s: float | None, arrival_s: float) -> float | None:
    return None if at_s is None else at_s - arrival_s


class _LineWriter(RotatingFileHandler):
    """Writes lines to a file that rotates; lines that cannot be written are dropped."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(message)s"))
        self._warned = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by ``logging`` where a line could not be written."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "the plan log %s cannot be written (%s): lines are dropped until it can be again",
                self.baseFilename,
                sys.exc_info()[1],
            )


class PlanLog(Observer):
    """JSON lines, written by a thread of its own.

    A disk that is full, slow or gone costs lines and a warning, never the pool.
    """

    def __init__(self, path: str | None) -> None:
        """``path`` None logs nothing; the file's folder is created."""
        self._lines: queue.Queue[logging.LogRecord | None] | None = None
        if path is None:
            return
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            writer = _LineWriter(Path(path))
        except OSError as error:
            logger.warning("no plan log: %s", error)
            return
        self._lines = queue.Queue(MAX_WAITING_LINES)
        # A daemon: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=_write, args=(self._lines, writer), daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def ended(self, request: PoolRequest) -> None:
        """Log one ended request; probes are left out."""
        if self._lines is not None and not request.probe:
            self._put(record(request, unix_offset_s=time.time() - time.monotonic()))

    def seat_changed(self, seat: int, incarnation: int, state: str, why: str) -> None:
        """Log a seat's new state."""
        self._put(
            {
                "kind": "seat",
                "at_s": time.monotonic(),
                "at_unix_s": time.time(),
                "seat": seat,
                "incarnation": incarnation,
                "state": state,
                "why": why,
            }
        )

    def roles_changed(self, roles: Roles, why: str) -> None:
        """Log the seats' new roles."""
        self._put(
            {
                "kind": "roles",
                "at_s": time.monotonic(),
                "at_unix_s": time.time(),
                "roles": str(roles),
                "why": why,
            }
        )

    def _put(self, line: dict[str, Any]) -> None:
        if self._lines is None:
            return
        # A disk that is too slow for the load: what waits must not grow without bound.
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(logging.makeLogRecord({"msg": json.dumps(line)}))

    def close(self) -> None:
        """Write what waits, for a second at most, and log nothing more; safe to call twice."""
        lines, self._lines = self._lines, None
        if lines is not None:
            with contextlib.suppress(queue.Full):
                lines.put(None, timeout=CLOSED_WITHIN_S)
            self._thread.join(CLOSED_WITHIN_S)


def _write(lines: queue.Queue[logging.LogRecord | None], writer: logging.Handler) -> None:
    while (line := lines.get()) is not None:
        writer.handle(line)
    with contextlib.suppress(OSError):
        writer.close()
