"""Everything that is wrong with a command line, found before anything starts."""

from __future__ import annotations

from typing import Any

from sglang_cdsp.args import CdspArgs, CdspConfigError
from sglang_cdsp.checks import check_transfer_backend, check_version, refusals
from sglang_cdsp.launch import controller_watch, model, options, ports, stock_options

SGLANG_DEFAULT_BACKEND = "mooncake"


def problems_of(cdsp: CdspArgs, server_args: Any) -> list[str]:
    """One line each with the remedy; nothing for a command line that can be served.

    Args:
        server_args: SGLang's, as given on the command line: not resolved yet.
    """
    from sglang import __version__

    try:
        check_version(cdsp, __version__)
    except CdspConfigError as error:
        # What SGLang's own options are called in another release is not known.
        return list(error.problems)
    return [
        *refusals(server_args),
        *stock_options.problems(server_args),
        *_transfer(server_args.disaggregation_transfer_backend),
        *options.problems(cdsp, server_args),
        *ports.problems(server_args),
        *model.problems(server_args),
        *controller_watch.problems(),
    ]


def _transfer(backend: str) -> list[str]:
    """What is wrong with a transfer backend that the command line names for certain.

    SGLang's default is Mooncake, and a platform may put another in its place. The controller
    checks what has become of it before it starts the instances.
    """
    if backend == SGLANG_DEFAULT_BACKEND:
        return []
    try:
        check_transfer_backend(backend)
    except CdspConfigError as error:
        return list(error.problems)
    return []
