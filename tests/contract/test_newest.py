"""The newest SGLang release that the package index has, read like the pinned one.

The pinned release must answer the table in full. A newer one that ``newest.py`` knows must differ
exactly as it says. One that is newer still is reported, not failed: what upstream publishes must
not break what was right yesterday.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from tests.contract.newest import EXPECTED

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / "build" / "contract"
PINNED = version("sglang")
DOWNLOAD_TIMEOUT_S = 180


def newest_wheel() -> Path:
    """The newest release's wheel for this Python, downloaded once.

    Raises:
        LookupError: no index can be reached.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(WHEELS), "sglang"]
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S
        )
    except subprocess.CalledProcessError as error:
        raise LookupError(error.stderr.strip()[-200:]) from error
    except subprocess.TimeoutExpired as error:
        raise LookupError("the package index does not answer") from error
    return max(WHEELS.glob("sglang-*.whl"), key=release_of)


def release_of(wheel: Path) -> Version:
    return Version(wheel.name.split("-")[1])


def sources(wheel: Path) -> Path:
    """The wheel's Python files, unpacked beside it."""
    directory = wheel.with_suffix("")
    if not directory.exists():
        with zipfile.ZipFile(wheel) as archive:
            python = (name for name in archive.namelist() if name.endswith(".py"))
            archive.extractall(directory, [name for name in python if name.startswith("sglang/")])
    return directory


def problems_with(path: Path) -> list[str]:
    """What ``tests.contract.drift`` says with ``path`` before everything else."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(path), str(ROOT)))}
    answer = subprocess.run(
        [sys.executable, "-m", "tests.contract.drift"],
        env=environment,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    found: list[str] = json.loads(answer.stdout)
    return found


def report(expected: list[str], found: list[str]) -> str:
    """How two lists of problems differ, "" where they do not."""
    new = [f"not in the table: {text}" for text in found if text not in expected]
    over = [f"no longer so: {text}" for text in expected if text not in found]
    return "\n".join([*new, *over])


def test_the_newest_release_differs_as_the_table_says() -> None:
    try:
        wheel = newest_wheel()
    except LookupError as error:
        pytest.skip(f"cannot get the newest sglang: {error}")
    release = str(release_of(wheel))
    found = problems_with(sources(wheel))
    if release == PINNED:
        assert found == [], f"{release} is pinned and the newest: it must answer the whole table"
        return
    if release in EXPECTED:
        drift = report([d.problem for d in EXPECTED[release]], found)
        assert not drift, f"sglang {release} against tests/contract/newest.py:\n{drift}"
        return
    known = max(EXPECTED, key=Version)
    drift = report([d.problem for d in EXPECTED[known]], found)
    pytest.xfail(
        f"sglang {release} is newer than tests/contract/newest.py ({known}); beside {known}:\n"
        f"{drift or 'no further drift'}"
    )


def test_the_pinned_release_is_older_than_every_one_in_the_table() -> None:
    assert all(Version(release) > Version(PINNED) for release in EXPECTED), (
        "a release is pinned now that newest.py has differences for: drop them"
    )


def test_a_release_without_what_is_relied_on_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").touch()
    found = problems_with(tmp_path)
    assert "sglang.srt.managers.scheduler: no module sglang.srt.managers.scheduler" in found


def test_the_report_tells_new_and_settled_differences() -> None:
    assert report(["a", "b"], ["b", "a"]) == ""
    assert report(["a"], ["b"]) == "not in the table: b\nno longer so: a"
