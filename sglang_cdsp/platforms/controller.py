"""The data-parallel controller's process, with plugins loaded.

In SGLang 0.5.21 the stock controller process does not load plugins, so hooks registered for it
would have no effect there.
"""

from typing import Any

from sglang_cdsp.releases import controller_loads_plugins


def run_controller_with_plugins(*args: Any, **kwargs: Any) -> None:
    """Process target: load the plugins, then SGLang's own controller entry.

    A plain function, because a spawned child looks its target up by module and name.
    """
    from sglang.srt.managers.data_parallel_controller import run_data_parallel_controller_process
    from sglang.srt.plugins import load_plugins

    load_plugins()
    run_data_parallel_controller_process(*args, **kwargs)


def install_controller_entry() -> None:
    """Make the server start the controller through ``run_controller_with_plugins``.

    Does nothing where SGLang's own target loads the plugins, nor where the target is no longer
    SGLang's own: who replaced it loads them.
    """
    if controller_loads_plugins():
        return
    from sglang.srt.entrypoints import engine
    from sglang.srt.managers import data_parallel_controller

    stock = data_parallel_controller.run_data_parallel_controller_process
    if engine.run_data_parallel_controller_process is stock:
        engine.run_data_parallel_controller_process = run_controller_with_plugins
