"""Everything that is wrong with a command line, found before anything starts."""

from __future__ import annotations

from typing import Any

from sglang_cdsp.args import CdspArgs, CdspConfigError
from sglang_cdsp.checks import check_transfer_backend, check_version, refusals
from sglang_cdsp.form import Form
from sglang_cdsp.launch import controller_watch, kv_events, model, options, ports, stock_options
from sglang_cdsp.launch.one_server_options import ONE_SERVER_OPTIONS

SGLANG_DEFAULT_BACKEND = "mooncake"


def problems_of(cdsp: CdspArgs, server_args: Any, *, listens: bool = True) -> list[str]:
    """One line each with the remedy; nothing for a command line that can be served.

    Args:
        server_args: SGLang's, as given on the command line: not resolved yet.
        listens: whether the ports that they name will be listened on.
    """
    from sglang import __version__

    try:
        check_version(cdsp, __version__)
    except CdspConfigError as error:
        # What SGLang's own options are called in another release is not known.
        return list(error.problems)
    return [
        *refusals(server_args),
        *stock_options.problems(server_args, _options(server_args)),
        *_transfer(server_args),
        *options.problems(cdsp, server_args),
        *kv_events.problems(server_args),
        *(ports.problems(server_args) if listens else ()),
        *model.problems(server_args),
        *controller_watch.problems(),
    ]


def _options(server_args: Any) -> tuple[stock_options.Option, ...]:
    """SGLang's options as the form of the pool judges them."""
    one_server = server_args.disaggregation_mode == Form.ONE_SERVER.value
    return ONE_SERVER_OPTIONS if one_server else stock_options.OPTIONS


def _transfer(server_args: Any) -> list[str]:
    """What is wrong with a transfer backend that the command line names for certain.

    SGLang's default is Mooncake, and a platform may put another in its place. The controller
    checks what has become of it before it starts the instances. One server needs none.
    """
    backend = server_args.disaggregation_transfer_backend
    one_server = server_args.disaggregation_mode == Form.ONE_SERVER.value
    if backend == SGLANG_DEFAULT_BACKEND or one_server:
        return []
    try:
        check_transfer_backend(backend)
    except CdspConfigError as error:
        return list(error.problems)
    return []
