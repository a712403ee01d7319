"""Server arguments that a torch-only CPU needs, where the user left them open."""

import importlib.util
import os
import sys
from typing import Any

from sglang_cdsp.platforms.controller import install_controller_entry

OVERLAP_VAR = "SGLANG_CDSP_TEST_OVERLAP"
"""For tests: "1" leaves the overlap scheduler to SGLang's flag. Its streams do nothing here."""

DEFAULT_MAX_TOTAL_TOKENS = 65_536
"""KV slots a rank: SGLang would else take most of the memory that the whole machine has free."""

DEFAULT_MAX_RUNNING_REQUESTS = 64
"""Requests a rank: each holds a row of slots as long as the context, whether used or not."""

DEFAULT_MEM_FRACTION = 0.9
"""Share of free memory that weights and KV may take.

SGLang compares free memory before and after loading, and on a host other processes load at the
same time; with KV bounded in tokens a large share is safe and a small one fails at random.
"""


def apply_cpu_defaults(server_args: Any) -> None:
    """Fill open fields of ``server_args``, SGLang's recording view of its arguments.

    Fields that the user set keep their value, except those whose other values cannot run here
    (overlap scheduling needs device streams, decode's host pool pins memory through CUDA).
    """
    args = server_args
    if args.dtype == "auto":
        args.dtype = "float32"
    if args.max_total_tokens is None:
        args.max_total_tokens = max(DEFAULT_MAX_TOTAL_TOKENS, args.context_length or 0)
    if args.max_running_requests is None:
        args.max_running_requests = DEFAULT_MAX_RUNNING_REQUESTS
    if args.mem_fraction_static is None:
        args.mem_fraction_static = DEFAULT_MEM_FRACTION
    if args.sampling_backend is None:
        args.sampling_backend = "pytorch"
    if os.environ.get(OVERLAP_VAR) != "1":
        args.disable_overlap_schedule = True
    if args.disaggregation_mode != "null":
        _apply_disaggregation_defaults(args)
    if args.dp_size > 1:
        install_controller_entry()


def _apply_disaggregation_defaults(args: Any) -> None:
    backend = "disaggregation_transfer_backend"
    nixl_present = importlib.util.find_spec("nixl") is not None
    if getattr(args, backend) == "mooncake" and not _named(backend) and nixl_present:
        # SGLang's default, which needs RDMA devices unless it is told otherwise.
        setattr(args, backend, "nixl")
    if args.disaggregation_mode == "decode" and args.disaggregation_decode_retraction_backup in (
        None,
        "host_pool",
    ):
        args.disaggregation_decode_retraction_backup = "cpu_tensor"


def _named(field: str) -> bool:
    """Whether the command line gives an option; arguments do not tell a default from a choice."""
    option = f"--{field.replace('_', '-')}"
    return any(word.split("=")[0] == option for word in sys.argv)
