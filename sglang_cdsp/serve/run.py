"""Starts a layout, watches it, and ends it: by a signal, or because a part of it has died."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.live import Live

from sglang_cdsp.serve.asked import value_of
from sglang_cdsp.serve.layout import Layout
from sglang_cdsp.serve.reason import how_ended, reason_in
from sglang_cdsp.serve.screen import Seen, progress_table, show_ready
from sglang_cdsp.stack.processes import ServerEndedError, ServerFailedError
from sglang_cdsp.stack.running import RunningStack, running

LOOK_EVERY_S = 0.5
LOOK_TIMEOUT_S = 10.0


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
            show_ready(out, layout, look(layout), logs, stack.start_s, tp_size)
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


def look(layout: Layout) -> Seen:
    """What the pool shows of itself."""
    found = None
    with contextlib.suppress(ValueError):
        found = json.loads(_get(layout, "/cdsp/status") or b"{}")
    page = _get(layout, "/cdsp") is not None
    return Seen(found if isinstance(found, dict) else {}, page)


def _get(layout: Layout, path: str) -> bytes | None:
    """What the pool answers to the key that its admin routes ask for; None if that is an error."""
    flags = layout.pool.server_flags
    key = value_of(flags, "--admin-api-key") or value_of(flags, "--api-key")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{layout.pool.url}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=LOOK_TIMEOUT_S) as answer:
            return bytes(answer.read())
    except (OSError, http.client.HTTPException):
        return None


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
