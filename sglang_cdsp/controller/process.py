"""The controller process: SGLang's, with the pool controller in the stock controller's place."""

from __future__ import annotations

from typing import Any

from sglang_cdsp import hook_table, hooks


class OneReplicaPipe:
    """The pipe on which SGLang's target tells the launching process that it is ready.

    ``/server_info`` shows what is told there over the server's flags: routers that know data
    parallelism would take the instances for replicas that they can choose from.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def send(self, message: dict[str, Any]) -> None:
        """Pass a message on, with the ``dp_size`` that the pool presents."""
        self._pipe.send({**message, "dp_size": 1})


def run_pool_controller_process(
    server_args: Any, port_args: Any, pipe_writer: Any, *args: Any, **kwargs: Any
) -> None:
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
    stock.run_data_parallel_controller_process(
        server_args, port_args, OneReplicaPipe(pipe_writer), *args, **kwargs
    )
