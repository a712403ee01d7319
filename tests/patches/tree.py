"""A copy of the installed SGLang with patches applied, made of links wherever nothing changes.

The installed package stays as it is: only the files that patches touch are copied.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

PATCHES = Path(__file__).parents[2] / "patches"
PREFIX = PurePosixPath("python")
"""Where SGLang's repository keeps its packages; the wheel has them at the top."""


def patch_files() -> list[Path]:
    """All patches in their order."""
    return sorted(PATCHES.glob("*.patch"))


def touched(patch: Path) -> set[PurePosixPath]:
    """Files that a patch changes, relative to SGLang's repository."""
    names = re.findall(r"^diff --git a/(\S+) b/\1$", patch.read_text(), flags=re.MULTILINE)
    return {PurePosixPath(name) for name in names}


def installed() -> Path:
    """Directory that holds the installed ``sglang`` package, found without importing it."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


def copy_touched(target: Path, patches: Sequence[Path]) -> None:
    """Copy into ``target`` just the installed files that ``patches`` touch."""
    for name in set().union(*map(touched, patches)):
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(installed() / name.relative_to(PREFIX), copy)


def copy_package(target: Path, patches: Sequence[Path]) -> None:
    """Lay out the whole package in ``target``: copies where patches touch, links elsewhere."""
    names = {name.relative_to(PREFIX / "sglang") for name in set().union(*map(touched, patches))}
    _mirror(installed() / "sglang", target / PREFIX / "sglang", names)


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
