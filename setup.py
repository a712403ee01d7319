"""Packaging of ``sglang-cdsp``.

The top-level directory ``kernels/`` is installed as ``sglang_cdsp.kernels``: in the tree it stands
beside the package because it knows nothing of SGLang, in an installation it is part of it.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
KERNELS = "sglang_cdsp.kernels"


def version() -> str:
    """Read ``__version__`` without importing the package, whose needs may not be installed yet."""
    text = (ROOT / "sglang_cdsp" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('sglang_cdsp/__init__.py must define __version__ = "X.Y.Z"')
    return match.group(1)


def long_description() -> str:
    """Return the README, or nothing while a source tree has none."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


kernel_packages = [KERNELS] + [f"{KERNELS}.{name}" for name in find_packages("kernels")]

setup(
    name="sglang-cdsp",
    version=version(),
    description="Elastic sequence-parallel prefill (chunkwise dynamic sequence parallelism) "
    "as an SGLang plugin",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["sglang_cdsp", "sglang_cdsp.*"]) + kernel_packages,
    package_dir={KERNELS: "kernels"},
    package_data={"sglang_cdsp": ["planner/models/*.json", "py.typed"]},
    # SGLang itself is not listed: a CUDA machine takes the plain `sglang==0.5.21`, a machine
    # without an accelerator the set in requirements/cpu.txt, and pip cannot tell the two apart.
    install_requires=["numba", "numpy", "tqdm"],
    extras_require={"plots": ["matplotlib"]},
    entry_points={
        "sglang.srt.plugins": ["cdsp = sglang_cdsp.plugin:register"],
        "sglang.srt.platforms": ["cdsp_cpu = sglang_cdsp.platforms:activate"],
    },
)
