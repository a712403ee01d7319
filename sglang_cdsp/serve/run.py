"""Starts a layout, watches it, and ends it: by a signal, or because a part of it has died."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.live import Live

from sglang_cdsp.serve.layout import Layout
from sglang_cdsp.serve.reason import how_ended, reason_in
from sglang_cdsp.serve.screen import progress_table, show_ready
from sglang_cdsp.stack.processes import ServerEndedError, ServerFailedError
from sglang_cdsp.stack.running import RunningStack, running

LOOK_EVERY_S = 0.5


def serve(
    layout: Layout, logs: Path, timeout_s: float, tp_size: int, out: Console, err: Console
) -> int:
    """Serve until a signal, or until a part ends; then end all parts.

    Args:
        layout: what to start.
        logs: gets a file a part.
        timeout_s: seconds until all must be ready.
        tp_size: ranks of an instance, for the panel.
        out: gets the panel.
        err: gets progress and what went wrong.

    Returns:
        The exit status: 0 where a signal ended what was ready, 1 where a part ended by itself or
        was not ready in time, 130 or 143 where a signal ended the start.
    """
    ready = False
    try:
        with _started(layout, logs, timeout_s, err) as stack:
            ready = True
            status = pool_status(layout)
            show_ready(out, layout, status, logs, stack.start_s, tp_size)
            watch(stack)
    except KeyboardInterrupt:
        return _stopped(ready, 130, err)
    except SystemExit as stop:  # SIGTERM, as the stack tells it
        return _stopped(ready, int(stop.code or 0), err)
    except ServerEndedError as error:
        say_why(error, err)
        return 1
    except ServerFailedError as error:
        err.print(f"python -m sglang_cdsp serve: {error}", soft_wrap=True, markup=False)
        return 1


def _stopped(ready: bool, status: int, err: Console) -> int:
    err.print("all servers have ended" if ready else "stopped before all was ready")
    return 0 if ready else status


def watch(stack: RunningStack, sleep: Callable[[float], None] = time.sleep) -> NoReturn:
    """Return never.

    Raises:
        ServerEndedError: a part has ended.
    """
    while True:
        for server in stack.servers.values():
            server.check_alive()
        sleep(LOOK_EVERY_S)


def say_why(error: ServerEndedError, err: Console) -> None:
    """Which part has ended, why, and where more of it stands."""
    server = error.server
    name = server.command.name
    err.print(
        f"python -m sglang_cdsp serve: {name} {how_ended(error.status)}, and with it all has ended",
        style="red",
        markup=False,
        soft_wrap=True,
    )
    reason = reason_in(server.log_text())
    if reason:
        err.print(f"  {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    err.print(f"  its log: {server.log}", markup=False, highlight=False, soft_wrap=True)


def pool_status(layout: Layout) -> Mapping[str, Any]:
    """What the pool says of itself; {} where it asks for a key."""
    try:
        with urllib.request.urlopen(f"{layout.pool.url}/cdsp/status", timeout=10) as answer:
            found = json.load(answer)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def _started(layout: Layout, logs: Path, timeout_s: float, err: Console) -> Iterator[RunningStack]:
    """The running layout; on a terminal its start is a table that changes, elsewhere lines."""

    def say(line: str) -> None:
        err.print(line, markup=False, highlight=False, soft_wrap=True)

    if not err.is_terminal:
        with running(layout.deployment(), logs, progress=say, timeout_s=timeout_s) as stack:
            yield stack
        return
    with contextlib.ExitStack() as screen:
        live = screen.enter_context(
            Live(progress_table(layout, {}, 0.0), console=err, transient=True)
        )

        def show(stages: Mapping[str, str], elapsed_s: float) -> None:
            live.update(progress_table(layout, stages, elapsed_s))

        with running(
            layout.deployment(), logs, progress=say, watch=show, timeout_s=timeout_s
        ) as stack:
            screen.close()
            yield stack
