"""The Dockerfile: what a linter looks for, and that it follows the pins and the tree."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from sglang_cdsp.args import TESTED_SGLANG_VERSIONS

ROOT = Path(__file__).parents[2]
KNOWN = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "LABEL", "RUN", "WORKDIR"}


@dataclass(frozen=True)
class Instruction:
    """One instruction, its lines joined: its keyword and the rest."""

    keyword: str
    text: str


def instructions(source: str) -> list[Instruction]:
    """A Dockerfile's instructions, without comments."""
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    parts = (line.partition(" ") for line in joined.splitlines())
    return [Instruction(keyword, text.strip()) for keyword, _, text in parts]


@pytest.fixture(scope="module")
def dockerfile() -> list[Instruction]:
    return instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def of(dockerfile: list[Instruction], keyword: str) -> list[str]:
    return [each.text for each in dockerfile if each.keyword == keyword]


def pins(file: str) -> set[str]:
    return set((ROOT / "requirements" / file).read_text(encoding="utf-8").split())


def test_instructions_are_known(dockerfile: list[Instruction]) -> None:
    assert {each.keyword for each in dockerfile} <= KNOWN
    assert dockerfile[0].keyword == "ARG"
    stages = of(dockerfile, "FROM")
    assert len(stages) == 2
    assert " AS " in stages[0]
    assert " AS " not in stages[1]


def test_the_image_is_that_of_the_pinned_release(dockerfile: list[Instruction]) -> None:
    assert of(dockerfile, "ARG")[0] == f"SGLANG_VERSION={TESTED_SGLANG_VERSIONS[0]}"
    for stage in of(dockerfile, "FROM"):
        assert stage.partition(" ")[0] == "lmsysorg/sglang:v${SGLANG_VERSION}"


def test_packages_are_pinned_as_the_tests_have_them(dockerfile: list[Instruction]) -> None:
    installs = [
        words
        for command in of(dockerfile, "RUN")
        for part in command.split("&&")
        if "pip" in (words := shlex.split(part))
    ]
    assert len(installs) == 3
    assert all("--no-cache-dir" in words for words in installs)
    named = {word for words in installs for word in words if "==" in word}
    names = {name.partition("==")[0] for name in named}
    assert names == {"greenlet", "nixl", "platformdirs", "rich"}
    assert named <= pins("cpu.txt")


def test_what_is_copied_is_there_and_not_ignored(dockerfile: list[Instruction]) -> None:
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = [path for text in of(dockerfile, "COPY") for path in text.split()[:-1]]
    assert {"pyproject.toml", "sglang_cdsp", "kernels", "CHANGELOG.md"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists(), path
        assert f"!{path}" in kept


def test_the_image_starts_a_pool(dockerfile: list[Instruction]) -> None:
    (entry,), (command,) = of(dockerfile, "ENTRYPOINT"), of(dockerfile, "CMD")
    assert json.loads(entry)[:4] == ["python3", "-m", "sglang.launch_server", "--cdsp"]
    assert json.loads(command) == ["--help"]
    assert of(dockerfile, "WORKDIR") == ["/src"]
