"""How the launching process of a pool becomes one, once its options are known."""

from __future__ import annotations

from typing import Any

from sglang_cdsp import hook_table, hooks, routes
from sglang_cdsp.args import CdspArgs, activate, with_admin
from sglang_cdsp.launch import controller_watch
from sglang_cdsp.protocol.heartbeat import Heartbeat


def begin(cdsp: CdspArgs, server_args: Any) -> None:
    """Options into the environment of what is spawned from here, hooks and routes in place.

    Args:
        cdsp: checked options.
        server_args: SGLang's.

    Raises:
        HookNotLive: a hook is not in force.
    """
    cdsp = with_admin(cdsp)
    activate(cdsp)
    heartbeat = Heartbeat.create()
    heartbeat.publish()
    shares_weights = getattr(server_args, "weight_cache_mode", "off") != "off"
    routes.install(
        cdsp.admin, cdsp.admin_key, excuse=heartbeat.excuse, shares_weights=shares_weights
    )
    hook_table.apply(hooks.LAUNCHER_HOOKS, at_once=True)
    hooks.verify(hooks.LAUNCHER_HOOKS)
    controller_watch.start(heartbeat, controller_watch.limit_s())
