"""The controller process: SGLang's, with the pool controller in the stock controller's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_cdsp import hook_table, hooks


def run_pool_controller_process(
    server_args: Any,
    port_args: Any,
    pipe_writer: Any,
    run_scheduler_process_func: Callable[..., Any] | None = None,
) -> None:
    """Target of the spawned process; same parameters as SGLang's request.

    SGLang's request looks its controller class up in its module, so the class is put there and the
    rest (signals, logging, readiness, the event loop) stays stock.
    """
    from sglang.srt.managers import data_parallel_controller as stock
    from sglang.srt.plugins import load_plugins

    load_plugins()
    hook_table.apply(hooks.CONTROLLER_HOOKS)
    hooks.verify(hooks.CONTROLLER_HOOKS)
    run = run_scheduler_process_func or stock.run_scheduler_process
    stock.run_data_parallel_controller_process(server_args, port_args, pipe_writer, run)
