"""KV transfer from and to host memory over NIXL."""

from typing import Any


def register_kv_as_host_memory(manager: Any, args: Any, *more: Any, **kwargs: Any) -> None:
    """BEFORE hook on ``NixlKVManager.__init__``: declare every KV buffer as host memory.

    SGLang registers KV with NIXL as device memory unless ``args.kv_data_mem_kinds`` says
    otherwise, one entry a buffer; NIXL refuses host pointers under that name. The prefill and the
    decode server both need it: each tells the other its own kinds.
    """
    args.kv_data_mem_kinds = ["DRAM"] * len(args.kv_data_ptrs)
