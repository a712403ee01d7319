"""What each transfer engine needs of the machine and of its settings, checked before it is used."""

from __future__ import annotations

import importlib
import importlib.util

from sglang_cdsp.args import CdspConfigError


def check_nixl() -> None:
    """Refuse to start without NIXL.

    Raises:
        CdspConfigError: NIXL is not installed.
    """
    # Not imported: the library starts threads, and the controller has no use for it.
    if importlib.util.find_spec("nixl") is None:
        raise CdspConfigError(
            "NIXL is not installed: install nixl, or set --disaggregation-transfer-backend "
            "mooncake on both servers"
        )


def check_mooncake() -> None:
    """Refuse to start where Mooncake cannot run as the pool needs it.

    Raises:
        CdspConfigError: it is not installed, cannot be loaded, or sends metadata in its own way.
    """
    instead = "or set --disaggregation-transfer-backend nixl on both servers"
    try:
        importlib.import_module("mooncake.engine")
    except ModuleNotFoundError as error:
        raise CdspConfigError(
            f"Mooncake is not installed ({error}): install mooncake-transfer-engine (without CUDA: "
            f"mooncake-transfer-engine-non-cuda), {instead}"
        ) from error
    except ImportError as error:
        raise CdspConfigError(
            f"Mooncake cannot be loaded ({error}): install the system package of that library "
            f"(Debian, Ubuntu: libibverbs1, libnuma1, libcurl4), {instead}"
        ) from error

    from sglang.srt.disaggregation.mooncake.utils import check_mooncake_custom_mem_pool_enabled
    from sglang.srt.environ import envs

    _, pool = check_mooncake_custom_mem_pool_enabled()
    if envs.SGLANG_MOONCAKE_SEND_AUX_TCP.get() or pool == "NVLINK":
        # Home's metadata and the controller's last word would race on two connections.
        raise CdspConfigError(
            "--cdsp writes a request's metadata as it writes KV: unset "
            f"SGLANG_MOONCAKE_SEND_AUX_TCP and SGLANG_MOONCAKE_CUSTOM_MEM_POOL=NVLINK, {instead}"
        )
