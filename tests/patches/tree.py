"""A copy of the installed SGLang and its router with patches applied, made of links elsewhere.

The installed packages stay as they are: only the files that patches touch are copied.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

PATCHES = Path(__file__).parents[2] / "patches"
PACKAGES = {
    "sglang": PurePosixPath("python"),
    "sglang_router": PurePosixPath("sgl-model-gateway/bindings/python/src"),
}
"""Where SGLang's repository keeps each of its packages; the wheels have them at the top."""


def patch_files() -> list[Path]:
    """All patches in their order."""
    return sorted(PATCHES.glob("*.patch"))


def touched(patch: Path) -> set[PurePosixPath]:
    """Files that a patch changes, relative to SGLang's repository."""
    names = re.findall(r"^diff --git a/(\S+) b/\1$", patch.read_text(), flags=re.MULTILINE)
    return {PurePosixPath(name) for name in names}


def installed(package: str = "sglang") -> Path:
    """Directory that holds an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


def search_path(tree: Path) -> str:
    """``PYTHONPATH`` of a tree made by ``copy_packages``."""
    return os.pathsep.join(str(tree / prefix) for prefix in PACKAGES.values())


def copy_touched(target: Path, patches: Sequence[Path]) -> None:
    """Copy into ``target`` just the installed files that ``patches`` touch."""
    for name in set().union(*map(touched, patches)):
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(_wheel_file(name), copy)


def copy_packages(
    target: Path, patches: Sequence[Path], packages: Sequence[str] = tuple(PACKAGES)
) -> None:
    """Lay out ``packages`` in ``target``: copies where patches touch, links elsewhere."""
    names: set[PurePosixPath] = set().union(*map(touched, patches))
    for package in packages:
        root = PACKAGES[package] / package
        inner = {name.relative_to(root) for name in names if name.is_relative_to(root)}
        _mirror(installed(package) / package, target / root, inner)


def _wheel_file(name: PurePosixPath) -> Path:
    """The installed form of a file of SGLang's repository."""
    for package, prefix in PACKAGES.items():
        if name.is_relative_to(prefix / package):
            return installed(package) / name.relative_to(prefix)
    raise ValueError(f"{name} is in no wheel; a patch may touch files of {list(PACKAGES)} only")


def _mirror(source: Path, target: Path, copied: set[PurePosixPath]) -> None:
    target.mkdir(parents=True)
    for entry in source.iterdir():
        below = {name for name in copied if name.parts[0] == entry.name}
        if entry.name == "__pycache__":
            # A directory of links: Python replaces a link whose source was patched.
            _mirror(entry, target / entry.name, set())
        elif not below:
            (target / entry.name).symlink_to(entry)
        elif entry.is_dir():
            inner = {PurePosixPath(*name.parts[1:]) for name in below}
            _mirror(entry, target / entry.name, inner)
        else:
            shutil.copy2(entry, target / entry.name)


def git_apply(tree: Path, patch: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``git apply`` in ``tree`` as in a checkout of SGLang; never raises."""
    return subprocess.run(
        ["git", "apply", *options, str(patch)],
        cwd=tree,
        # Without the ceiling git would take a repository around the tree for SGLang's.
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def patch_tree(tree: Path, patches: Sequence[Path]) -> None:
    """Apply patches in their order to a tree made by ``copy_packages``."""
    for patch in patches:
        done = git_apply(tree, patch)
        assert done.returncode == 0, f"{patch.name}: {done.stderr}"
