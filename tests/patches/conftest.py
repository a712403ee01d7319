"""The installed SGLang and a patched copy, each asked the same questions in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.patches.tree import copy_packages, patch_files, patch_tree, search_path

PROBES = Path(__file__).parent / "probes" / "main.py"
TIMEOUT_S = 300


@pytest.fixture(scope="session")
def patched_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SGLang and its router with all patches applied in their order."""
    tree = tmp_path_factory.mktemp("patched")
    copy_packages(tree, patch_files())
    patch_tree(tree, patch_files())
    return tree


@pytest.fixture(scope="session")
def answers(
    patched_tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What the probes find, by tree ("wheel", "patched") and probe; run side by side."""
    directory = tmp_path_factory.mktemp("answers")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SGLANG_")}
    kept["PYTHONDONTWRITEBYTECODE"] = "1"
    paths = {"wheel": "", "patched": search_path(patched_tree)}
    running = {
        name: subprocess.Popen(
            [sys.executable, str(PROBES), str(directory / f"{name}.json"), name],
            env={**kept, "PYTHONPATH": path},
            stdout=(directory / f"{name}.log").open("w"),
            stderr=subprocess.STDOUT,
            cwd="/",
        )
        for name, path in paths.items()
    }
    try:
        for name, process in running.items():
            code = process.wait(TIMEOUT_S)
            assert code == 0, (directory / f"{name}.log").read_text()
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return {name: json.loads((directory / f"{name}.json").read_text()) for name in running}
