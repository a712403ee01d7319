"""Our KV managers where SGLang asks for a class that moves KV, ``get_kv_class``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.disaggregation.utils import KVClassType, TransferBackend

from sglang_cdsp.transfer.registry import TRANSFER_ENGINES


def pool_managers() -> dict[Any, Any]:
    """Our manager by SGLang's name of the transfer engine."""
    return {TransferBackend(engine.name): engine.manager_class() for engine in TRANSFER_ENGINES}


def pool_kv_class(original: Callable[..., Any], backend: Any, class_type: Any) -> Any:
    """Choose a class as ``get_kv_class`` does, except that a prefill instance's manager is ours.

    AROUND hook: ``original`` is SGLang's function, or what another plugin made of it.
    """
    ours = pool_managers().get(backend) if class_type == KVClassType.MANAGER else None
    return ours or original(backend, class_type)


def gives_pool_managers(get_kv_class: Callable[[Any, Any], Any]) -> bool:
    """Whether a function in the place of ``get_kv_class`` chooses our managers."""
    return all(
        get_kv_class(backend, KVClassType.MANAGER) is ours
        for backend, ours in pool_managers().items()
    )
