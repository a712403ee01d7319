"""Operator schemas that torchvision's Python side needs and its CUDA-linked library lacks here.

The torchvision wheel on PyPI is linked against CUDA. Beside a CPU build of torch its library does
not load, and ``import torchvision`` then fails while it attaches a meta kernel to the unknown
operator ``torchvision::nms``. SGLang imports torchvision (through transformers) in every process
and calls neither operator for a text model: declaring them is enough.
"""

import functools
import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")


@functools.cache
def declare_torchvision_schemas() -> torch.library.Library | None:
    """Declare ``torchvision::nms`` and ``torchvision::qnms`` if torchvision's library is unusable.

    Must run before the first ``import torchvision`` of the process; later calls return the first
    one's result.

    Returns:
        The library object that keeps the schemas alive, or ``None`` where torchvision is not
        installed or brings its operators itself.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _own_operators_load(Path(spec.origin).parent):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _OPERATORS:
        library.define(f"{name}{_SCHEMA}")
    return library


def _own_operators_load(package: Path) -> bool:
    for path in package.glob("_C*.so"):
        try:
            torch.ops.load_library(str(path))
        except OSError:
            continue
        return hasattr(torch.ops.torchvision, "nms")
    return False
