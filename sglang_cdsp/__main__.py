"""``python -m sglang_cdsp COMMAND``: every module of `sglang_cdsp.cli` is a command.

A command's module has a docstring, whose first line is its help; `add_arguments(parser)`; and
`run(options) -> int`, the exit status. Only the command that was asked for is imported. One with
`TAKES_OTHERS` finds the words that it does not know in `options.others`.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import pkgutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from sglang_cdsp import cli
from sglang_cdsp.cli.needs import leave
from sglang_cdsp.cli.parser import OneLineParser


def commands() -> dict[str, str]:
    """The commands there are, with one line of help each, read without importing them."""
    found = {}
    for module in pkgutil.iter_modules(cli.__path__):
        path = Path(cli.__path__[0]) / f"{module.name}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if {"add_arguments", "run"} <= functions:
            first = (ast.get_docstring(tree) or "").splitlines()[:1]
            found[module.name] = "".join(first).partition(": ")[2] or "".join(first)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status, 2 for bad arguments."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    known = commands()
    parser = OneLineParser(
        prog="python -m sglang_cdsp",
        description="Elastic sequence-parallel prefill for SGLang.",
        epilog="commands:\n" + "\n".join(f"  {name:<10} {text}" for name, text in known.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=known, metavar="COMMAND", help="see below")
    command: str = parser.parse_args(given[:1]).command
    try:
        module = importlib.import_module(f"sglang_cdsp.cli.{command}")
    except ImportError as error:
        leave(f"python -m sglang_cdsp {command}", error)
    own = OneLineParser(
        prog=f"python -m sglang_cdsp {command}", description=known[command], allow_abbrev=False
    )
    module.add_arguments(own)
    if getattr(module, "TAKES_OTHERS", False):
        options, others = own.parse_known_args(given[1:])
        options.others = [word for word in others if word != "--"]
    else:
        options = own.parse_args(given[1:])
    try:
        status: int = module.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read stdout has gone; what is still buffered for it must not raise at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


if __name__ == "__main__":
    sys.exit(main())
