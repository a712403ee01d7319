"""What the benchmarks on real servers check of their flags before a server starts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path

from sglang_cdsp.cli.needs import EXTRAS, SERVER, lacking
from sglang_cdsp.cli.outputs import OutputError, check_file, check_folder
from sglang_cdsp.cli.parser import OneLineParser
from sglang_cdsp.planner.errors import PlannerError
from sglang_cdsp.planner.latency import LatencyModel


def some_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """What reads a list of known names, `kill,stop`, each once."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return read


def check(
    parser: OneLineParser,
    options: argparse.Namespace,
    *,
    files: tuple[str, ...] = (),
    folders: tuple[str, ...] = (),
) -> None:
    """Ends the program with one line and status 2 if it could not come to its end.

    Args:
        parser: of the program.
        options: a field `latency_model`, if there is one, is read.
        files: fields of `options` with files to write, None where none was given.
        folders: the same, of folders.
    """
    gone = lacking((*SERVER, *EXTRAS["demo"]))
    if gone:
        parser.error(gone)
    try:
        for name in files:
            check_file(getattr(options, name), _flag(name))
        for name in folders:
            check_folder(getattr(options, name), _flag(name))
        model: Path | None = getattr(options, "latency_model", None)
        if model is not None:
            LatencyModel.load(model)
    except (OutputError, PlannerError) as error:
        parser.error(str(error))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
