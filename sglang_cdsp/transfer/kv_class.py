"""Our KV managers where SGLang asks for a class that moves KV, ``get_kv_class``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.disaggregation.utils import KVClassType, TransferBackend

from sglang_cdsp.transfer.mooncake import MooncakePoolManager
from sglang_cdsp.transfer.nixl import NixlPoolManager

POOL_MANAGERS = {
    TransferBackend.NIXL: NixlPoolManager,
    TransferBackend.MOONCAKE: MooncakePoolManager,
}


def pool_kv_class(original: Callable[..., Any], backend: Any, class_type: Any) -> Any:
    """Choose a class as ``get_kv_class`` does, except that a prefill instance's manager is ours.

    AROUND hook: ``original`` is SGLang's function, or what another plugin made of it.
    """
    ours = POOL_MANAGERS.get(backend) if class_type == KVClassType.MANAGER else None
    return ours or original(backend, class_type)


def gives_pool_managers(get_kv_class: Callable[[Any, Any], Any]) -> bool:
    """Whether a function in the place of ``get_kv_class`` chooses our managers."""
    return all(
        get_kv_class(backend, KVClassType.MANAGER) is ours
        for backend, ours in POOL_MANAGERS.items()
    )
