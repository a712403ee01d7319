"""Watches the pool controller from the process that launched it, and that answers HTTP.

Without its controller a server would keep its clients waiting for ever. A thread looks whether the
controller's process has ended, or its loop has stopped coming round, and then ends the server.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable

import psutil

from sglang_cdsp.args import CdspConfigError
from sglang_cdsp.protocol.heartbeat import Heartbeat

logger = logging.getLogger(__name__)

LIMIT_VAR = "SGLANG_CDSP_CONTROLLER_TIMEOUT"
LIMIT_S = 10.0
"""How long the controller may stand still, unless ``SGLANG_CDSP_CONTROLLER_TIMEOUT`` says."""

LOOK_EVERY_S = 0.25
MOST_A_LOOK_S = 2 * LOOK_EVERY_S
"""What counts at most of the time between two looks; in the rest this process did not run."""

KILL_AFTER_S = 30.0
"""How long SGLang's handler of SIGQUIT has for what it does before it ends the server."""

STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


def limit_s() -> float:
    """How long the controller may stand still, seconds.

    Raises:
        CdspConfigError: the variable is set to something else.
    """
    text = os.environ.get(LIMIT_VAR, "")
    try:
        seconds = float(text) if text else LIMIT_S
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise CdspConfigError(f"{LIMIT_VAR}={text} is no number of seconds; give one above 0")
    return seconds


def problems() -> list[str]:
    """What is wrong with the variable; one line with the remedy, or nothing."""
    try:
        limit_s()
    except CdspConfigError as error:
        return list(error.problems)
    return []


def how_ended(pid: int) -> str:
    """How a child of this process has ended, as a verb; "" while it runs.

    Its exit status is left to whoever waits for it.
    """
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # somebody has waited for it already
        return "has ended"
    if found is None:
        return ""
    if found.si_code == os.CLD_EXITED:
        return f"ended with exit code {found.si_status}"
    return f"was killed by signal {found.si_status}"


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped a process (SIGSTOP, a debugger)."""
    try:
        return psutil.Process(pid).status() in STOPPED
    except psutil.NoSuchProcess:
        return False


class Silence:
    """For how long a counter has not moved, as far as its reader itself was running."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """``clock``: monotonic seconds."""
        self._clock = clock
        self._last_s = clock()
        self._beats = 0
        self._silent_s = 0.0

    def read(self, beats: int, excused_until_s: float) -> float:
        """Seconds of silence so far that nobody has announced.

        Args:
            beats: the counter.
            excused_until_s: until when it may stand still, on the same clock.
        """
        now_s = self._clock()
        since_s, self._last_s = now_s - self._last_s, now_s
        if beats != self._beats or now_s <= excused_until_s:
            self._beats, self._silent_s = beats, 0.0
        else:
            self._silent_s += min(since_s, MOST_A_LOOK_S)
        return self._silent_s


class ControllerWatch:
    """Says why the server has to end, once it has to."""

    def __init__(
        self,
        heartbeat: Heartbeat,
        limit_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        ended: Callable[[int], str] = how_ended,
        stopped: Callable[[int], bool] = is_stopped,
    ) -> None:
        """Watch the process behind ``heartbeat``.

        Args:
            limit_s: how long it may stand still.
            clock: monotonic seconds.
            ended: how a process has ended, "" while it runs.
            stopped: whether a process is stopped.
        """
        self._heartbeat = heartbeat
        self._limit_s = limit_s
        self._silence = Silence(clock)
        self._ended = ended
        self._stopped = stopped

    def look(self) -> str:
        """Why the server has to end, in a line; "" while it need not.

        Before the first beat the pool is starting, which SGLang's launching process looks after.
        """
        beats, pid = self._heartbeat.beats, self._heartbeat.pid
        silent_s = self._silence.read(beats, self._heartbeat.excused_until_s)
        if not beats:
            return ""
        if how := self._ended(pid):
            return f"the pool controller (pid {pid}) {how}; the server ends with it: restart it"
        if silent_s < self._limit_s:
            return ""
        state = "it is stopped" if self._stopped(pid) else "its loop hangs"
        return (
            f"the pool controller (pid {pid}) has stood still for {self._limit_s:g} s, {state}; "
            "the server ends: restart it; a stop on purpose is announced with POST "
            f"/cdsp/announce_stop, more patience is set with {LIMIT_VAR}"
        )


def shutting_down() -> bool:
    """Whether SGLang is ending the server in good order, so that its processes may end."""
    from sglang.srt.entrypoints.http_server import get_global_state

    state = get_global_state()
    if state is None:
        return False
    manager = state.tokenizer_manager
    # After SIGTERM it stops its own watchdog; after Ctrl-C it leaves the loop that answers HTTP.
    watchdog, loop = manager._subprocess_watchdog, manager.event_loop
    return (watchdog is not None and watchdog._stop_event.is_set()) or (
        loop is not None and not loop.is_running()
    )


def end_server(reason: str) -> None:
    """End this process and all that it has started, after one line that says why.

    SGLang's handler of SIGQUIT writes its crash dumps first, if it was told to. Where it does not
    come to its end, because this process's loop hangs too, the processes are killed from here.
    """
    logger.error("sglang-cdsp: %s", reason)
    os.kill(os.getpid(), signal.SIGQUIT)
    time.sleep(KILL_AFTER_S)
    kill_all(psutil.Process().children(recursive=True))
    # The first process of a container cannot be killed from inside.
    os._exit(128 + signal.SIGQUIT)


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill processes of which one may end with another: a scheduler ends with its controller."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


class WatchThread(threading.Thread):
    """Watches until the server has to end, or nobody wants it watched any more."""

    def __init__(self, watch: ControllerWatch) -> None:
        super().__init__(daemon=True, name="cdsp-controller-watch")
        self._watch = watch
        self._stopping = threading.Event()

    def run(self) -> None:
        while not (reason := self._watch.look()):
            if self._stopping.wait(LOOK_EVERY_S):
                return
        # An orderly end begins a moment before the controller's.
        if not self._stopping.is_set() and not shutting_down():
            end_server(reason)

    def stop(self) -> None:
        """The controller may end from here on."""
        self._stopping.set()


def start(heartbeat: Heartbeat, limit_s: float) -> None:
    """Watch from a thread of its own for as long as this process lives, or until `stop`."""
    WatchThread(ControllerWatch(heartbeat, limit_s)).start()


def stop() -> None:
    """This process watches no controller any more."""
    for thread in threading.enumerate():
        if isinstance(thread, WatchThread):
            thread.stop()
