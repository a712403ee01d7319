"""NIXL's progress thread: it looks for progress without a pause, unless it is told to sleep."""

from __future__ import annotations

import importlib
import os
from typing import Any

PROGRESS_INTERVAL_US = 1000
"""Longest sleep of NIXL's progress thread between two looks at its connections.

NIXL's Python interface asks for 0, which keeps a core busy in every scheduler process and takes
half of the speed of its neighbours' computations.
"""
INTERVAL_VAR = "SGLANG_CDSP_NIXL_PROGRESS_US"
"""Environment variable with another interval in microseconds; 0 lets the thread spin."""


def progress_interval_us() -> int:
    """How long NIXL's progress thread may sleep, in microseconds.

    Raises:
        ValueError: the environment variable holds no number of microseconds.
    """
    text = os.environ.get(INTERVAL_VAR, str(PROGRESS_INTERVAL_US))
    if not text.isdecimal():
        raise ValueError(
            f"{INTERVAL_VAR}={text!r} is no number of microseconds: set 0 to let NIXL's progress "
            f"thread spin, or unset it for {PROGRESS_INTERVAL_US}"
        )
    return int(text)


def calm_progress_thread() -> None:
    """Let NIXL agents that this process creates from now on sleep while nothing moves."""
    progress_interval_us()  # a wrong value is told here, not inside NIXL
    agent_class = importlib.import_module("nixl._api").nixl_agent
    interface: Any = importlib.import_module(agent_class.__module__)
    if not isinstance(interface.nixlBind, CalmBindings):
        interface.nixlBind = CalmBindings(interface.nixlBind)


class CalmBindings:
    """NIXL's native bindings, except that an agent's progress thread sleeps between looks."""

    def __init__(self, bindings: Any):
        self._bindings = bindings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bindings, name)

    def nixlAgent(self, name: str, config: Any) -> Any:
        """Create an agent with ``progress_interval_us`` in its configuration."""
        config.pthrDelay = progress_interval_us()
        return self._bindings.nixlAgent(name, config)
