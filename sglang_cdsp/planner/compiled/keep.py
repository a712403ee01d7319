"""Compiling with numba's cache where that can be used, and without it where it cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numba import njit

logger = logging.getLogger(__name__)


def compile_kept(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    run_once: Callable[[Callable[..., Any]], object],
) -> Callable[..., Any]:
    """`function` compiled: loaded from numba's cache, or compiled and kept there.

    Where the cache cannot be used (no folder that can be written, a full disk, a broken file) it is
    compiled for this process alone, with one warning.

    Args:
        function: a plain function in a file of its own.
        options: arguments of numba's `njit`.
        run_once: calls what it is given with arguments of the types that will be used, so that
            it is compiled or loaded now.
    """
    kept: Any = None
    try:
        kept = njit(cache=True, **options)(function)
        _discard_stale_code(kept, Path(function.__code__.co_filename))
        run_once(kept)
    except Exception as error:  # of numba, of the file system, or of a file that is no pickle
        logger.warning(
            "the compiled planner cannot be kept (%s), so every start compiles it anew, which "
            "takes 10 s or so; set NUMBA_CACHE_DIR to a folder that can be written",
            " ".join(str(error).split()) or type(error).__name__,
        )
        if kept is None or not kept.signatures:
            kept = njit(**options)(function)
        run_once(kept)
    found: Callable[..., Any] = kept
    return found


def _discard_stale_code(kept: Any, file: Path) -> None:
    """Drops compiled code that is older than any source file beside `file`.

    numba itself only looks at the function's own file, not at those of the functions inside it.
    """
    newest = max(source.stat().st_mtime for source in file.parent.glob("*.py"))
    name = kept.py_func.__qualname__
    for index in Path(kept.stats.cache_path).glob(f"{file.stem}.{name}-*.nbi"):
        if index.stat().st_mtime < newest:
            index.unlink(missing_ok=True)
