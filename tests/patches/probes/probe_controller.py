"""Whether plugins are in force in the data-parallel controller's process."""

import contextlib
from typing import Any
from unittest import mock

from sglang.srt.managers import data_parallel_controller as controller
from sglang.srt.plugins.hook_registry import HookRegistry, HookType


class Stop(Exception):
    """Ends the controller's process entry once it publishes its arguments."""


class OurController(controller.DataParallelController):
    """What a plugin puts in the stock controller's place."""


def run() -> dict[str, Any]:
    """``replaced``: whether a plugin's class is in place when the process starts its work."""
    HookRegistry.register(
        "sglang.srt.managers.data_parallel_controller.DataParallelController",
        OurController,
        HookType.REPLACE,
    )
    seen = []

    def publish(*_: Any, **__: Any) -> None:
        seen.append(controller.DataParallelController is OurController)
        raise Stop

    with (
        mock.patch.multiple(controller, publish=publish, kill_itself_when_parent_died=mock.DEFAULT),
        contextlib.suppress(Stop),
    ):
        controller.run_data_parallel_controller_process(None, None, None)
    return {"replaced": seen}
