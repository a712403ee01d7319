"""``sgl.Engine(cdsp=True, ...)``: a pool in a Python program, without HTTP.

The flags of the command line are its keywords: ``--cdsp-policy cdsp`` is ``cdsp_policy="cdsp"``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from sglang_cdsp.args import (
    CdspConfigError,
    active_args,
    add_cli_args,
    deactivate,
    from_namespace,
)
from sglang_cdsp.begin import begin
from sglang_cdsp.checks import forced_settings
from sglang_cdsp.form import Form
from sglang_cdsp.launch import controller_watch
from sglang_cdsp.launch.command_line import problems_of
from sglang_cdsp.launch.defaults import open_settings
from sglang_cdsp.launch.unknown_flags import keep_unknown_flags

OURS = "cdsp"
ANOTHER = (
    "this process has a pool; shut that engine down first, or start another process for this one"
)


class EngineArgs:
    """What ``sgl.Engine`` makes its ``ServerArgs`` with: an object, which no engine binds."""

    def __call__(self, **options: Any) -> Any:
        """SGLang's arguments; with ``cdsp=True`` the engine is a pool from here on.

        Args:
            options: of ``ServerArgs``, and ours.

        Raises:
            CdspConfigError: a line on each thing that cannot work, before anything starts.
        """
        from sglang.srt.server_args import ServerArgs

        if active_args() is not None:
            raise CdspConfigError(ANOTHER)
        ours = {name: value for name, value in options.items() if is_ours(name)}
        stock = {name: value for name, value in options.items() if not is_ours(name)}
        cdsp, problems = from_namespace(parsed(ours))
        if cdsp is None:
            if problems:
                raise CdspConfigError(*problems)
            return ServerArgs(**stock)
        mode = stock.get("disaggregation_mode", Form.ONE_SERVER.value)
        forced = forced_settings(mode, prefix_cache=cdsp.prefix_cache)
        chosen = {**open_settings(argparse.Namespace(**stock)), **forced}
        server_args = ServerArgs(**{**stock, **chosen})
        problems += problems_of(cdsp, server_args, listens=False)
        if problems:
            raise CdspConfigError(*problems)
        begin(cdsp, server_args)
        return server_args


ENGINE_ARGS = EngineArgs()


def shut_down(original: Callable[[Any], Any], engine: Any) -> Any:
    """AROUND hook on ``Engine.shutdown``: its controller may end, and another engine may follow."""
    if active_args() is not None:
        controller_watch.stop()
        deactivate()
    return original(engine)


def is_ours(name: str) -> bool:
    """Whether a keyword is one of this package's."""
    return name == OURS or name.startswith(f"{OURS}_")


def parsed(options: Mapping[str, Any]) -> argparse.Namespace:
    """Our keywords as the command line's parser would have read them.

    What is None or False is left out, as a flag is; what has several values is joined by commas.
    """
    parser = argparse.ArgumentParser(prog="sgl.Engine", allow_abbrev=False)
    add_cli_args(parser)
    keep_unknown_flags(parser)
    words: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            words.append(flag)
        elif isinstance(value, (list, tuple)):
            words.append(f"{flag}={','.join(map(str, value))}")
        else:
            words.append(f"{flag}={value}")
    return parser.parse_args(words)
