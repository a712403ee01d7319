"""SIGQUIT is blocked in the controller's process from its first instruction on.

Schedulers send it to the controller, which asks the system who sent it. That works where every
thread has it blocked, those of libraries too, and they inherit it from whoever starts the process.
"""

from __future__ import annotations

import signal
from typing import Any


def launch_with_sigquit_blocked(original: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND hook on ``Engine._launch_scheduler_processes``, which starts the controller.

    The launching process has its own SIGQUIT back afterwards; one that came meanwhile follows.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGQUIT})
    try:
        return original(*args, **kwargs)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
