"""Process groups of our own, apart from the default group of ``torch.distributed``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import torch

# The classes that torch.distributed re-exports without saying so in its types.
from torch._C._distributed_c10d import PrefixStore, ProcessGroup, ProcessGroupGloo, Store

CONNECT_TRIES = 3
# torch has no "never"; ten years in milliseconds still fits every integer on the way to gloo.
NO_TIMEOUT = timedelta(days=3650)


def gloo_links(
    store: Store, rank: int, size: int, bind_host: str | None, timeout: timedelta
) -> ProcessGroup:
    """Connect all ranks; all of them again, a few times, if one could not.

    Gloo's handshake fails now and then ("connection closed by peer") although everybody is there.
    The ranks tell each other through the store how it went, so that all of them try again.
    """
    for attempt in range(CONNECT_TRIES):
        keys = PrefixStore(f"try{attempt}", store)
        group, failure = None, ""
        try:
            group = gloo_group(keys, rank, size, bind_host, timeout)
        except RuntimeError as error:
            failure = str(error)
        keys.set(f"end{rank}", failure)
        names = [f"end{other}" for other in range(size)]
        keys.wait(names, timeout)
        ends = [keys.get(key).decode() for key in names]
        if group is not None and not any(ends):
            return group
        if group is not None:
            group.shutdown()
    raise RuntimeError(f"{CONNECT_TRIES} tries failed, the last: {next(filter(None, ends))}")


def gloo_group(
    store: Store, rank: int, size: int, bind_host: str | None, timeout: timedelta
) -> ProcessGroup:
    """Connect all ranks over ``bind_host``'s interface; ``RuntimeError`` if one could not."""
    options: Any = cast(Any, ProcessGroupGloo)._Options()
    options._timeout = timeout  # for meeting each other; Work.wait sets its own
    options._threads = 1  # point-to-point does not use gloo's threads for collectives
    options._devices = [
        ProcessGroupGloo.create_device(hostname=bind_host)
        if bind_host
        else ProcessGroupGloo.create_default_device()
    ]
    backend = ProcessGroupGloo(store, rank, size, options)
    return _wrapped(store, rank, size, backend, ProcessGroup.BackendType.GLOO, "cpu")


def nccl_group(store: Store, rank: int, size: int, device: torch.device) -> ProcessGroup:
    """Make NCCL's communicator of all ranks at once, on ``device``."""
    try:
        from torch._C._distributed_c10d import ProcessGroupNCCL
    except ImportError as error:
        raise RuntimeError("this build of torch is without NCCL") from error

    options = ProcessGroupNCCL.Options()
    options._timeout = NO_TIMEOUT
    backend = ProcessGroupNCCL(store, rank, size, options)
    # Grouped point-to-point calls use the communicator of all ranks. Made lazily, it would wait
    # for ranks outside the SP group that happens to be first.
    backend.eager_connect_single_device(device)
    return _wrapped(store, rank, size, backend, ProcessGroup.BackendType.NCCL, "cuda")


def _wrapped(
    store: Store, rank: int, size: int, backend: Any, kind: Any, device: str
) -> ProcessGroup:
    group = ProcessGroup(store, rank, size)
    group._register_backend(torch.device(device), kind, backend)
    group._set_default_backend(kind)
    return group
