"""What of the packaging needs code: which packages there are. The rest is in ``pyproject.toml``.

The top-level directory ``kernels/`` is installed as ``sglang_cdsp.kernels``: in the tree it stands
beside the package because it knows nothing of SGLang, in an installation it is part of it.
"""

from setuptools import find_packages, setup

KERNELS = "sglang_cdsp.kernels"

setup(
    packages=[
        *find_packages(include=["sglang_cdsp", "sglang_cdsp.*"]),
        *(KERNELS, *(f"{KERNELS}.{name}" for name in find_packages("kernels"))),
    ],
    package_dir={KERNELS: "kernels"},
)
