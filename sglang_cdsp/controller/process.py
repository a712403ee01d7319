"""The controller process: SGLang's, with the pool controller in the stock controller's place."""

from __future__ import annotations

from typing import Any

from sglang_cdsp import hook_table, hooks


def run_pool_controller_process(*args: Any, **kwargs: Any) -> None:
    """Target of the spawned process; takes what SGLang's own target takes, and passes it on.

    SGLang's target looks its controller class up in its module, so the class is put there and the
    rest (signals, logging, readiness, the event loop) stays stock.
    """
    from sglang.srt.managers import data_parallel_controller as stock
    from sglang.srt.plugins import load_plugins

    # The plugins' hooks have to be there before the class below is defined; that SGLang 0.5.23
    # loads them again in this process does nothing.
    load_plugins()
    hook_table.apply(hooks.CONTROLLER_HOOKS)
    hooks.verify(hooks.CONTROLLER_HOOKS)
    stock.run_data_parallel_controller_process(*args, **kwargs)
