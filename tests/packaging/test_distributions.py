"""Source distribution and wheel: what they hold, and that the bare wheel works alone.

Both are built from a copy of the tree, so nothing is left beside the sources. The wheel is built
from the source distribution, as a package index would. It is installed into an environment that has
only what its metadata asks for: no SGLang, no torch.
"""

from __future__ import annotations

import configparser
import email
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import sglang_cdsp
from tests.packaging.index import index_answers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# What decides the distributions, and what must not get into them.
SOURCES = ("sglang_cdsp", "kernels", "tests", "bench", "patches")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")


def run(*command: str, cwd: Path) -> str:
    """Run ``command`` without this tree on the path; return what it printed."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with one source distribution and the wheel that was built from it."""
    tree = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "out", ".", cwd=tree)
    return tree / "out"


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (found,) = distributions.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """The wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def installed(path: Path, package: str) -> set[str]:
    """The files of a source folder under the names that they have when installed."""
    endings = {".py", ".json", ".typed", ".html", ".css", ".js", ".svg"}
    names = {"py.typed", "LICENSE"}
    files = (file for file in path.rglob("*") if file.suffix in endings or file.name in names)
    return {f"{package}/{file.relative_to(path).as_posix()}" for file in files}


def test_the_wheel_holds_the_package_and_the_kernels_and_nothing_else(names: set[str]) -> None:
    expected = installed(ROOT / "sglang_cdsp", "sglang_cdsp")
    expected |= installed(ROOT / "kernels", "sglang_cdsp/kernels")
    assert {"sglang_cdsp/py.typed", "sglang_cdsp/kernels/merge.py"} <= expected
    assert any(name.startswith("sglang_cdsp/planner/models/") for name in expected)
    assert {"sglang_cdsp/page/assets/index.html", "sglang_cdsp/page/assets/main.js"} <= expected
    assert "sglang_cdsp/page/assets/vendor/uplot/LICENSE" in expected
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_sglang_finds_plugin_and_platform(wheel: Path) -> None:
    entries = configparser.ConfigParser()
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        entries.read_string(archive.read(name).decode())
    assert {section: dict(entries[section]) for section in entries.sections()} == {
        "sglang.srt.plugins": {"cdsp": "sglang_cdsp.plugin:register"},
        "sglang.srt.platforms": {"cdsp_cpu": "sglang_cdsp.platforms:activate"},
    }


def test_the_metadata_says_what_it_is(wheel: Path, names: set[str]) -> None:
    found = metadata(wheel)
    assert (found["Name"], found["Version"]) == ("sglang-cdsp", sglang_cdsp.__version__)
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Requires-Python"] == ">=3.10"
    licences = {name.partition("/licenses/")[2] for name in names}
    assert {"LICENSE", "sglang_cdsp/page/assets/vendor/uplot/LICENSE"} <= licences
    needs = [need for need in found.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert sorted(needs) == ["greenlet", "numba", "numpy", "platformdirs", "rich"]
    assert str(found.get_payload()).startswith("# sglang-cdsp")


def test_the_source_distribution_has_no_tests_and_no_benchmarks(distributions: Path) -> None:
    (source,) = distributions.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    tops = {name.partition("/")[0] for name in inside}
    assert {"sglang_cdsp", "kernels", *FILES} <= tops
    assert not tops & {"tests", "bench", "patches", "examples"}
    assert installed(ROOT / "kernels", "kernels") <= inside


# -- the bare wheel -------------------------------------------------------------------------


def environment_with(package: str, place: Path) -> str:
    """The interpreter of a new environment with a package and what its metadata asks for."""
    if not index_answers():
        pytest.skip("no package index can be reached")
    run(sys.executable, "-m", "venv", "env", cwd=place)
    interpreter = str(place / "env" / "bin" / "python")
    pinned = ("--constraint", str(ROOT / "requirements" / "cpu.txt"))
    pip = (interpreter, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, *pinned, package, cwd=place)
    return interpreter


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with the bare wheel."""
    return environment_with(str(wheel), tmp_path_factory.mktemp("bare"))


def test_the_bare_wheel_brings_neither_sglang_nor_torch(python: str, tmp_path: Path) -> None:
    look = (
        "import importlib.util, json, sglang_cdsp\n"
        "names = 'sglang torch requests openai sglang_cdsp.kernels'.split()\n"
        "print(json.dumps([n for n in names if importlib.util.find_spec(n)]))\n"
        "print(sglang_cdsp.__file__)\n"
    )
    found, place = run(python, "-c", look, cwd=tmp_path).splitlines()
    assert json.loads(found) == ["sglang_cdsp.kernels"]
    assert Path(place).is_relative_to(Path(python).parents[1])


def test_the_bare_wheel_plans(python: str, tmp_path: Path) -> None:
    command = (python, "-m", "sglang_cdsp")
    assert "--tokens" in run(*command, "plan", "--help", cwd=tmp_path)
    given = ("--tokens", "131072", "--queue", "0*8,0.31*8", "--instances-per-node", "16")
    plan = json.loads(run(*command, "plan", *given, "--policy", "cdsp", "--json", cwd=tmp_path))
    assert [chunk["tokens"] for chunk in plan["chunks"]] == [14848, 116224]


def test_the_bare_wheel_simulates(python: str, tmp_path: Path) -> None:
    command = (python, "-m", "sglang_cdsp", "simulate")
    assert "--workload" in run(*command, "--help", cwd=tmp_path)
    drawn = ("--workload", "short", "--requests", "50", "--policy", "cdsp-late")
    out = run(*command, *drawn, cwd=tmp_path)
    assert "cdsp-late" in out


def test_what_profile_lacks_is_named_with_the_remedy(python: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [python, "-m", "sglang_cdsp", "profile", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'sglang-cdsp[demo]'" in done.stderr


@pytest.fixture(scope="module")
def with_demo(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with the wheel and its extra `demo`, without SGLang."""
    return environment_with(f"{wheel}[demo]", tmp_path_factory.mktemp("demo"))


def test_with_the_extra_only_sglang_is_missing(with_demo: str, tmp_path: Path) -> None:
    assert "--max-tokens" in run(with_demo, "-m", "sglang_cdsp", "profile", "--help", cwd=tmp_path)
    run(with_demo, "-m", "sglang_cdsp.testing.checkpoint", "checkpoint", cwd=tmp_path)
    profile = ("sglang_cdsp", "profile", "--model-path", "checkpoint", "--out", "model.json")
    for command in (profile, ("sglang_cdsp.demo",)):
        done = subprocess.run(
            [with_demo, "-m", *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "needs sglang, torch: install SGLang, see docs/install.md" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
