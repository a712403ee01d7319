"""What parts of the package import is what the metadata asks for."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
import tomlkit

from sglang_cdsp.cli.needs import EXTRAS as STATED

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sglang_cdsp"
PROJECT = tomlkit.parse((ROOT / "pyproject.toml").read_text(encoding="utf-8")).unwrap()["project"]
BARE = set(PROJECT["dependencies"])
BESIDE = {"sglang", "torch", "transformers", "zmq", "msgspec"}
"""There whenever servers are started: the extra comes beside SGLang and what that needs."""
EXTRAS = {name: set(needs) for name, needs in PROJECT["optional-dependencies"].items()}


def imported(*parts: str) -> set[str]:
    """Packages outside the standard library that ``parts`` of the package import."""
    found: set[str] = set()
    for part in parts:
        path = PACKAGE / part
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    found.add((node.module or "").partition(".")[0])
    return found - {"sglang_cdsp", "__future__", *sys.stdlib_module_names}


def test_planner_and_simulator_get_by_with_the_bare_wheel_and_figures() -> None:
    found = imported("planner", "simulator", "__main__.py")
    assert {"numba", "numpy"} <= found <= BARE | EXTRAS["plots"]


def test_the_demonstration_and_profile_get_by_with_the_extra() -> None:
    found = imported("demo", "testing", "cli") - BESIDE
    assert {"openai", "requests", "safetensors", "tokenizers"} <= found <= BARE | EXTRAS["demo"]
    assert '"sglang_router.launch_router"' in (PACKAGE / "stack/commands.py").read_text()
    assert "sglang-router" in EXTRAS["demo"]


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_no_extra_asks_for_more_than_is_imported(extra: str) -> None:
    parts = {"plots": ("simulator",), "demo": ("demo", "testing", "cli")}[extra]
    assert EXTRAS[extra] - {"sglang-router"} <= imported(*parts)


def test_what_commands_say_of_the_extras_is_what_the_metadata_says() -> None:
    stated = {extra: {name.replace("_", "-") for name in names} for extra, names in STATED.items()}
    assert stated == {
        extra: {name.replace("_", "-") for name in names} for extra, names in EXTRAS.items()
    }


def test_what_is_needed_is_pinned_for_a_machine_without_an_accelerator() -> None:
    files = [(ROOT / "requirements" / name).read_text() for name in ("cpu.txt", "dev.txt")]
    pinned = set(re.findall(r"^([\w.-]+)==", "\n".join(files), re.MULTILINE))
    assert {*BARE, *set().union(*EXTRAS.values())} <= pinned
