"""SIGQUIT is blocked in the controller's process from its first instruction on.

Schedulers send it to the controller, which asks the system who sent it. That works where every
thread has it blocked, those of libraries too, and they inherit it from whoever starts the process.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from sglang.srt.entrypoints.engine import Engine

STOCK_LAUNCH = Engine._launch_scheduler_processes
"""SGLang's own: this module is imported before the hook is put in place."""


def launch_with_sigquit_blocked(*args: Any, **kwargs: Any) -> Any:
    """Stand in for ``Engine._launch_scheduler_processes``, which starts the controller."""
    return with_sigquit_blocked(STOCK_LAUNCH, *args, **kwargs)


def with_sigquit_blocked(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call something that starts processes; SIGQUIT that comes meanwhile follows."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGQUIT})
    try:
        return call(*args, **kwargs)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
