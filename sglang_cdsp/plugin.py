"""The plugin's entry point: SGLang calls :func:`register` in every process it starts.

Off means off: without ``--cdsp`` on the command line only the argument group is added. With it,
the launching process puts the options into the environment, and ``register`` in each child finds
them there and installs that process's hooks.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any

from sglang_cdsp import hook_table, hooks
from sglang_cdsp.args import active_args, add_cli_args, from_namespace
from sglang_cdsp.begin import begin
from sglang_cdsp.checks import forced_settings
from sglang_cdsp.hook_table import HookNotLive
from sglang_cdsp.launch.command_line import problems_of
from sglang_cdsp.launch.defaults import access_log_settings, open_settings
from sglang_cdsp.launch.unknown_flags import keep_unknown_flags
from sglang_cdsp.protocol.parent import end_with_parent

logger = logging.getLogger(__name__)


def register() -> None:
    """Entry point of group ``sglang.srt.plugins``; safe to call twice.

    Raises:
        HookNotLive: in a pool's process, when a module of ours cannot be imported.
    """
    if active_args() is None:
        hook_table.apply(hooks.OPTION_HOOKS)
        # `sgl.Engine` loads plugins itself; who has not loaded it has no engine to make.
        if hooks.ENGINE_MODULE in sys.modules:
            hook_table.apply(hooks.ENGINE_HOOKS)
        return
    # The controller and its schedulers, the processes that load plugins in a pool.
    end_with_parent()
    try:
        hook_table.apply(hooks.SCHEDULER_HOOKS)
    except Exception as error:  # SGLang would log it and go on with its own scheduler
        raise HookNotLive(f"sglang-cdsp: no hook is in place: {error}. {hooks.REMEDY}") from error


def offer_options(result: Any, parser: argparse.ArgumentParser) -> None:
    """AFTER hook on ``ServerArgs.add_cli_args``: the command line takes our options, too.

    Where nobody would read them they are not offered, so that ``--cdsp`` is refused by the
    parser rather than served without effect.
    """
    unread = [text for hook in hooks.OPTION_HOOKS if (text := hook_table.fault(hook))]
    if unread:
        logger.error("--cdsp is not offered: %s. %s", "; ".join(unread), hooks.REMEDY)
        return
    add_cli_args(parser)
    keep_unknown_flags(parser)


def read_options(original: Any, cls: Any, namespace: argparse.Namespace) -> Any:
    """AROUND hook on ``ServerArgs.from_cli_args``: read ``--cdsp`` and its options.

    Raises:
        SystemExit: a line on each thing that cannot work, before anything starts.
    """
    cdsp, problems = from_namespace(namespace)
    if cdsp is None:
        _end(problems)
        return original(cls, namespace)
    forced = forced_settings(namespace.disaggregation_mode, prefix_cache=cdsp.prefix_cache)
    chosen = {**open_settings(namespace), **access_log_settings(namespace)}
    for name, value in {**chosen, **forced}.items():
        setattr(namespace, name, value)
    server_args = original(cls, namespace)
    _end(problems + problems_of(cdsp, server_args))
    begin(cdsp, server_args)
    return server_args


def _end(problems: list[str]) -> None:
    """End the process if there is any problem, with a line on each."""
    if problems:
        raise SystemExit("\n".join(f"sglang-cdsp: {problem}" for problem in problems))
