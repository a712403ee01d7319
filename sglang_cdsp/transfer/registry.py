"""Every transfer engine that the pool can move KV with: one row each.

Whoever adds an engine adds a row here, its manager beside it, and its messages to
``controller.decode.wire``. Nothing of SGLang, torch or an engine's library is imported before a
row's functions are called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_cdsp.args import CdspConfigError
from sglang_cdsp.transfer.installation import check_mooncake, check_nixl


@dataclass(frozen=True)
class TransferEngine:
    """One transfer engine.

    Attributes:
        name: what SGLang calls it in ``--disaggregation-transfer-backend``; its messages bear the
            same name in ``controller.decode.wire``.
        manager: ``module:class`` of a pool member's KV manager.
        check: refuses a machine or settings that the engine cannot run with, see
            ``transfer.installation``.
    """

    name: str
    manager: str
    check: Callable[[], None]

    def manager_class(self) -> Any:
        """The manager's class, a ``PoolKVManager``; imports SGLang and the engine's library."""
        module, _, name = self.manager.partition(":")
        return getattr(importlib.import_module(module), name)


TRANSFER_ENGINES = (
    TransferEngine("nixl", "sglang_cdsp.transfer.nixl:NixlPoolManager", check_nixl),
    TransferEngine("mooncake", "sglang_cdsp.transfer.mooncake:MooncakePoolManager", check_mooncake),
)


def transfer_engine(name: str) -> TransferEngine:
    """The engine that SGLang calls ``name``.

    Raises:
        CdspConfigError: the pool has none of that name.
    """
    for engine in TRANSFER_ENGINES:
        if engine.name == name:
            return engine
    names = " or ".join(engine.name for engine in TRANSFER_ENGINES)
    raise CdspConfigError(
        f"--cdsp moves KV over {names}, not over {name}: set --disaggregation-transfer-backend "
        f"{TRANSFER_ENGINES[0].name} on the prefill and on the decode server"
    )
