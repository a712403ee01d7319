"""Compiled functions where numba's cache cannot be used: they run, and one line says so."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, sys
sys.path.insert(0, {folder!r})
from sglang_cdsp.planner.compiled.keep import compile_kept
import work
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
print(compile_kept(work.double, {{}}, lambda f: f(1))(21))
"""
WORK = "def double(x):\n    return 2 * x\n"


def run(folder: Path, **environment: str) -> tuple[str, str]:
    """Stdout and stderr of the program that compiles `work.double` and calls it."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROGRAM.format(folder=str(folder))],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("work.double-*"))


def test_no_folder_for_the_cache(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "__pycache__").touch()  # no folder, so nothing can be written in it
    nowhere = {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere"}
    out, err = run(tmp_path, NUMBA_CACHE_DIR="/proc/nowhere", **nowhere)
    assert out == "42\n"
    assert err.startswith("WARNING the compiled planner cannot be kept (")
    assert err.count("\n") == 1
    assert "NUMBA_CACHE_DIR" in err


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_a_broken_cache(tmp_path: Path, ending: str) -> None:
    (tmp_path / "work.py").write_text(WORK)
    cache = tmp_path / "cache"
    assert run(tmp_path, NUMBA_CACHE_DIR=str(cache)) == ("42\n", "")
    assert len(kept(cache)) == 2
    assert run(tmp_path, NUMBA_CACHE_DIR=str(cache)) == ("42\n", "")
    (broken,) = [path for path in kept(cache) if path.suffix == f".{ending}"]
    broken.write_bytes(broken.read_bytes()[:40])
    out, err = run(tmp_path, NUMBA_CACHE_DIR=str(cache))
    assert out == "42\n"
    assert err.count("\n") == 1
    assert "cannot be kept" in err


def test_code_that_is_older_than_a_source_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(WORK)
    cache = tmp_path / "cache"
    run(tmp_path, NUMBA_CACHE_DIR=str(cache))
    (index,) = [path for path in kept(cache) if path.suffix == ".nbi"]
    other = tmp_path / "other.py"
    other.touch()
    os.utime(index, (1e9, 1e9))
    run(tmp_path, NUMBA_CACHE_DIR=str(cache))
    assert index.stat().st_mtime > 1e9  # written again


def test_a_full_disk_while_the_code_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from numba.core import caching

    from sglang_cdsp.planner.compiled.keep import compile_kept

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_data", full)
    calls = []
    with caplog.at_level(logging.WARNING):
        triple = compile_kept(times_three, {}, lambda f: calls.append(f(1)))
    assert triple(14) == 42
    assert calls == [3]  # compiled once: what could not be kept is used
    assert "No space left on device" in caplog.text
    assert len(caplog.records) == 1


def times_three(x: int) -> int:
    return 3 * x
