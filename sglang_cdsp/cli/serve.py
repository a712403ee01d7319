"""`python -m sglang_cdsp serve`: serve a model with a pool: all processes, one command."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

import platformdirs
from rich.console import Console

from sglang_cdsp.cli.needs import SERVER, lacking
from sglang_cdsp.cli.outputs import OutputError, check_folder
from sglang_cdsp.cli.parser import integer, number
from sglang_cdsp.cli.profile_checks import ProfileError, find_model
from sglang_cdsp.form import Form
from sglang_cdsp.serve import checks, devices
from sglang_cdsp.serve.asked import FORMS, Asked, sort_flags
from sglang_cdsp.serve.layout import Layout, layout_of
from sglang_cdsp.serve.run import serve

TAKES_OTHERS = True
"""Flags that this command does not know are SGLang's and the pool's."""

PROGRAM = "python -m sglang_cdsp serve"
PORT = 30_000
START_TIMEOUT_S = 1800.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.epilog = (
        "All other flags go to SGLang's servers: --cdsp-... to the pool, the rest to every server."
    )
    add = parser.add_argument
    add(
        *("--model-path", "--model"),
        required=True,
        metavar="MODEL",
        help="a folder, or a name on the hub",
    )
    add(
        *("--dp-size", "--data-parallel-size"),
        type=integer(2),
        default=2,
        metavar="N",
        help="instances of the pool (2)",
    )
    add(
        *("--tp-size", "--tensor-parallel-size", "--tp"),
        type=integer(1, 1024),
        default=1,
        metavar="N",
        help="ranks of an instance (1)",
    )
    add(
        "--form",
        choices=FORMS,
        default=next(iter(FORMS)),
        help="one-server: the pool decodes what it prefills; scale-out: it prefills for a stock "
        "decode server, behind a router (one-server)",
    )
    add("--host", default="127.0.0.1", help="where clients ask (127.0.0.1)")
    add("--port", type=integer(1, 65535), default=PORT, metavar="P", help=f"the same ({PORT})")
    add(
        "--decode-flags",
        type=shlex.split,
        default=[],
        metavar="'FLAG ...'",
        help="scale-out: further flags of the decode server alone, in one word",
    )
    add(
        "--log-directory",
        type=Path,
        metavar="DIR",
        help="a log a process goes there (default: in the user's log directory, by port)",
    )
    add(
        "--start-timeout",
        type=number(1, 1e6),
        default=START_TIMEOUT_S,
        metavar="SECONDS",
        help=f"until all must be ready ({START_TIMEOUT_S:.0f})",
    )


def run(options: argparse.Namespace) -> int:
    """Check, start, show, watch, end; exit status 2: a flag is wrong; 1: a server failed."""
    logs = options.log_directory or platformdirs.user_log_path("sglang-cdsp", False) / (
        f"serve-{options.port}"
    )
    form = FORMS[options.form]
    gone = lacking(SERVER if form is Form.ONE_SERVER else (*SERVER, "sglang_router"))
    if gone:
        return _failed([gone])
    flags = sort_flags(options.others)
    asked = Asked(
        model=options.model_path,
        instances=options.dp_size,
        tp_size=options.tp_size,
        host=options.host,
        port=options.port,
        pool_flags=flags.pool,
        flags=flags.servers,
        decode_flags=tuple(options.decode_flags),
        form=form,
    )
    problems = checks.quick_problems(asked)
    try:
        check_folder(logs, "--log-directory")
    except OutputError as error:
        problems.append(str(error))
    if problems:
        return _failed(problems)
    try:
        model, config = find_model(options.model_path)
    except ProfileError as error:
        return _failed([str(error)])
    machine = devices.look(asked.flags)
    asked = dataclasses.replace(asked, model=model)
    layout = layout_of(asked, machine)
    problems = checks.memory_problems(layout, asked, machine, checks.weights_here(model, config))
    if problems:
        return _failed(problems)
    return _start(asked, layout, logs.resolve(), options.start_timeout)


def _start(asked: Asked, layout: Layout, logs: Path, timeout_s: float) -> int:
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    err.print("reading the flags as SGLang does", style="dim")
    problems = checks.flag_problems(layout)
    if problems:
        return _failed(problems)
    return serve(layout, logs, timeout_s, asked.tp_size, out, err)


def _failed(problems: list[str]) -> int:
    for problem in problems:
        print(f"{PROGRAM}: {problem}", file=sys.stderr)
    return 2
