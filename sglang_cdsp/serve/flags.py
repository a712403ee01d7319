"""Reads command lines as SGLang's servers and the pool will, and says what they would refuse.

Run as a program with a JSON list of command lines on its standard input, each a list of words; it
prints the JSON list of what is wrong. SGLang is imported inside the functions, so that the module
itself costs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from sglang_cdsp.args import add_cli_args, from_namespace


class FlagError(ValueError):
    """A flag that SGLang's parser does not take; one line."""


class _Parser(argparse.ArgumentParser):
    """SGLang's parser without its usage, which is hundreds of flags long."""

    def error(self, message: str) -> NoReturn:
        raise FlagError(" ".join(message.split()))


def problems(words: Sequence[str]) -> list[str]:
    """What is wrong with one server's command line, one line each.

    Args:
        words: behind the name of SGLang's launcher.
    """
    from sglang.srt.server_args import ServerArgs

    from sglang_cdsp.checks import forced_settings
    from sglang_cdsp.launch.command_line import problems_of
    from sglang_cdsp.launch.unknown_flags import keep_unknown_flags

    parser = _Parser(prog="serve", add_help=False)
    ServerArgs.add_cli_args(parser)
    add_cli_args(parser)
    keep_unknown_flags(parser)
    try:
        namespace = parser.parse_args(list(words))
    except FlagError as error:
        return [str(error)]
    cdsp, found = from_namespace(namespace)
    if cdsp is None:
        return found
    forced = forced_settings(namespace.disaggregation_mode, prefix_cache=cdsp.prefix_cache)
    for name, value in forced.items():
        setattr(namespace, name, value)
    return found + problems_of(cdsp, ServerArgs.from_cli_args(namespace))


def main() -> None:
    """Answer on standard output, which SGLang must not use meanwhile."""
    warnings.simplefilter("ignore")
    given = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        found = [line for words in given for line in problems(words)]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
