"""When the torch-only CPU platform takes effect: never where another platform works."""

import importlib.util
import logging
import os
from importlib.metadata import EntryPoint, entry_points

import torch

logger = logging.getLogger(__name__)

ENTRY_POINT_NAME = "cdsp_cpu"
ENTRY_POINT_GROUP = "sglang.srt.platforms"


def torch_only_platform_wanted() -> bool:
    """Say whether this process should run on the torch-only CPU platform.

    An explicit choice wins: ``SGLANG_PLATFORM`` names a platform plugin, and
    ``SGLANG_USE_CPU_ENGINE=1`` asks for SGLang's own CPU path. Without either, the platform is
    wanted where torch sees no accelerator, ``sgl_kernel`` is not a CPU build, and no other
    installed platform plugin takes the machine.
    """
    chosen = os.environ.get("SGLANG_PLATFORM", "")
    if chosen:
        return chosen == ENTRY_POINT_NAME
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return False
    return not (accelerator_present() or sgl_kernel_has_cpu_ops() or other_platform_active())


def accelerator_present() -> bool:
    """Say whether torch can use a device that is not the CPU."""
    if torch.cuda.is_available() or torch.xpu.is_available() or torch.backends.mps.is_available():
        return True
    if torch.accelerator.is_available():
        return True
    # Vendor extensions that SGLang knows and that may not report through torch.accelerator.
    return any(
        importlib.util.find_spec(name) is not None
        for name in ("torch_npu", "habana_frameworks", "torchada", "torch_musa")
    )


def sgl_kernel_has_cpu_ops() -> bool:
    """Say whether the installed ``sgl_kernel``, if any, is the build with CPU operators."""
    if importlib.util.find_spec("sgl_kernel") is None:
        return False
    try:
        importlib.import_module("sgl_kernel")
    except Exception:  # a CUDA build fails in its own ways where there is no CUDA
        return False
    return hasattr(torch.ops.sgl_kernel, "init_cpu_threads_env")


def other_platform_active() -> bool:
    """Say whether another installed platform plugin activates itself here.

    SGLang refuses to choose between two active platforms, so this one steps back.
    """
    others = [ep for ep in entry_points(group=ENTRY_POINT_GROUP) if ep.name != ENTRY_POINT_NAME]
    return any(_activates(ep) for ep in others)


def _activates(entry_point: EntryPoint) -> bool:
    try:
        return entry_point.load()() is not None
    except Exception:
        logger.debug("platform plugin %s does not activate", entry_point.name, exc_info=True)
        return False
