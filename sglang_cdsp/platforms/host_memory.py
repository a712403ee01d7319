"""KV transfer from and to host memory over NIXL, on cores that the model needs."""

from typing import Any

from sglang_cdsp.transfer.progress_thread import calm_progress_thread


def prepare_nixl_manager(manager: Any, args: Any, *more: Any, **kwargs: Any) -> None:
    """BEFORE hook on ``NixlKVManager.__init__``: host memory, and no busy progress thread.

    SGLang registers KV with NIXL as device memory unless ``args.kv_data_mem_kinds`` says
    otherwise, one entry a buffer; NIXL refuses host pointers under that name. The prefill and the
    decode server both need it: each tells the other its own kinds.
    """
    args.kv_data_mem_kinds = ["DRAM"] * len(args.kv_data_ptrs)
    calm_progress_thread()
