"""The newest SGLang release that the package index has, read like the installed one.

A tested release must answer the table in full. One that is newer is reported, not failed: what
upstream publishes must not break what was right yesterday.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

from sglang_cdsp.args import TESTED_SGLANG_VERSIONS

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / "build" / "contract"
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


def test_tested_releases_answer_and_newer_ones_are_reported() -> None:
    try:
        wheel = newest_wheel()
    except LookupError as error:
        pytest.skip(f"cannot get the newest sglang: {error}")
    release = str(release_of(wheel))
    found = problems_with(sources(wheel))
    assert found == [] or release not in TESTED_SGLANG_VERSIONS, (
        f"sglang {release} is tested: it must answer the whole table"
    )
    if release not in TESTED_SGLANG_VERSIONS:
        pytest.xfail(report(release, found))


def report(release: str, found: list[str]) -> str:
    """What an untested release lacks of all that is relied on."""
    drift = "\n".join(found) or "all that is relied on is there"
    return f"sglang {release} is not tested (tested: {', '.join(TESTED_SGLANG_VERSIONS)}):\n{drift}"


def test_a_release_without_what_is_relied_on_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").touch()
    found = problems_with(tmp_path)
    assert "sglang.srt.managers.scheduler: no module sglang.srt.managers.scheduler" in found


def test_the_report_names_the_release_and_what_it_lacks() -> None:
    said = report("9.9.9", ["a.b: c is gone"])
    assert "sglang 9.9.9 is not tested" in said
    assert all(text in said for text in (*TESTED_SGLANG_VERSIONS, "a.b: c is gone"))
    assert "all that is relied on is there" in report("9.9.9", [])
