"""KV transfer from and to host memory over NIXL, on cores that the model needs."""

import importlib
from typing import Any

PROGRESS_INTERVAL_US = 1000
"""Longest sleep of NIXL's progress thread between two looks at its connections.

NIXL's Python interface asks for 0, which keeps a core busy in every scheduler process.
"""


def prepare_nixl_manager(manager: Any, args: Any, *more: Any, **kwargs: Any) -> None:
    """BEFORE hook on ``NixlKVManager.__init__``: host memory, and no busy progress thread.

    SGLang registers KV with NIXL as device memory unless ``args.kv_data_mem_kinds`` says
    otherwise, one entry a buffer; NIXL refuses host pointers under that name. The prefill and the
    decode server both need it: each tells the other its own kinds.
    """
    args.kv_data_mem_kinds = ["DRAM"] * len(args.kv_data_ptrs)
    calm_progress_thread()


def calm_progress_thread() -> None:
    """Let NIXL agents that this process creates from now on sleep while nothing moves."""
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
        """Create an agent with ``PROGRESS_INTERVAL_US`` in its configuration."""
        config.pthrDelay = PROGRESS_INTERVAL_US
        return self._bindings.nixlAgent(name, config)
