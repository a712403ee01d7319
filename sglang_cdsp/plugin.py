"""The plugin's entry point: SGLang calls :func:`register` in every process it starts.

Off means off: without ``--cdsp`` on the command line only the argument group is added. With it,
the launching process puts the options into the environment, and ``register`` in each child finds
them there and installs that process's hooks.
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

from sglang_cdsp import hooks, routes
from sglang_cdsp.args import (
    CdspConfigError,
    activate,
    active_args,
    add_cli_args,
    from_namespace,
    with_admin,
)
from sglang_cdsp.checks import check_server_args, check_version, forced_settings

logger = logging.getLogger(__name__)


def register() -> None:
    """Entry point of group ``sglang.srt.plugins``; safe to call twice."""
    if active_args() is not None:
        hooks.apply(hooks.SCHEDULER_HOOKS)
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    record = "sglang.srt.server_args.ServerArgs"
    HookRegistry.register(f"{record}.add_cli_args", _after_add_cli_args, HookType.AFTER)
    HookRegistry.register(f"{record}.from_cli_args", _around_from_cli_args, HookType.AROUND)


def _after_add_cli_args(result: Any, parser: argparse.ArgumentParser) -> None:
    add_cli_args(parser)


def _around_from_cli_args(original: Any, cls: Any, namespace: argparse.Namespace) -> Any:
    """Read ``--cdsp`` and its options; refuse what cannot work before anything starts."""
    try:
        cdsp = from_namespace(namespace)
        if cdsp is None:
            return original(cls, namespace)
        from sglang import __version__

        check_version(cdsp, __version__)
        for name, value in forced_settings(cdsp).items():
            setattr(namespace, name, value)
        server_args = original(cls, namespace)
        check_server_args(cdsp, server_args)
    except CdspConfigError as error:
        raise SystemExit(f"sglang-cdsp: {error}") from error
    cdsp = with_admin(cdsp)
    activate(cdsp)
    routes.install(cdsp.admin, cdsp.admin_key)
    hooks.apply(hooks.LAUNCHER_HOOKS)
    hooks.verify(hooks.LAUNCHER_HOOKS)
    return server_args
