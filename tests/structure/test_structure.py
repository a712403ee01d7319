"""The package's imports run one way, and the page shows them as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.structure.modules import NoDocstringError, lines_of
from tests.structure.page import PlaceError, insert, markers
from tests.structure.picture import Arrow, draw, named, names_in_strings
from tests.structure.source import ROOT

BEGIN, END = markers("imports")
PARTS = st.sampled_from(["planner", "engine", "hooks", "kernels", "controller"])


def tool(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of this directory in a process that has not imported the package."""
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_imports_run_one_way() -> None:
    done = tool("tests.structure.lint")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_shows_modules_and_imports_as_they_are() -> None:
    done = tool("tests.structure.page", "--check")
    assert done.returncode == 0, done.stderr


def test_a_name_in_a_string_is_found_and_other_strings_are_not() -> None:
    source = (
        'ours = "sglang_cdsp.engine.scheduler:PoolScheduler"\n'
        'page = "sglang_cdsp.engine: see there"\n'
        'other = "sglang.srt.managers:Scheduler"\n'
        'path = "sglang_cdsp.engine.scheduler"\n'
    )
    assert list(names_in_strings(source)) == ["sglang_cdsp.engine.scheduler"]


def test_names_inside_a_part_are_no_arrows(tmp_path: Path) -> None:
    package = tmp_path / "sglang_cdsp"
    (package / "engine").mkdir(parents=True)
    (package / "hooks.py").write_text('"sglang_cdsp.engine.scheduler:PoolScheduler"\n')
    (package / "engine" / "tasks.py").write_text('"sglang_cdsp.engine.scheduler:PoolScheduler"\n')
    assert named(tmp_path) == {Arrow("hooks", "engine", named=True)}


@given(st.sets(st.builds(Arrow, PARTS, PARTS, st.booleans()), min_size=1))
def test_every_arrow_is_drawn_once(arrows: set[Arrow]) -> None:
    lines = draw(arrows).splitlines()
    assert lines[:2] == ["```mermaid", "graph TD"]
    assert len(lines) == len(arrows) + 3
    assert len(set(lines)) == len(lines) - (lines.count("```") - 1)


def test_modules_are_listed_with_their_first_sentence(tmp_path: Path) -> None:
    (tmp_path / "engine" / "inner").mkdir(parents=True)
    (tmp_path / "engine" / "__init__.py").write_text('"""An engine."""\n')
    tasks = '"""Tasks: what\n``two`` :func:`are`.\n\nMore.\n"""\n'
    (tmp_path / "engine" / "tasks.py").write_text(tasks)
    (tmp_path / "engine" / "inner" / "__init__.py").write_text('"""Inside."""\n')
    assert list(lines_of(tmp_path / "engine", tmp_path)) == [
        "`engine/`: An engine.",
        "- `tasks.py`: Tasks: what `two` `are`.",
        "- `inner/`: Inside.",
    ]
    (tmp_path / "engine" / "silent.py").touch()
    with pytest.raises(NoDocstringError, match=r"silent\.py"):
        list(lines_of(tmp_path / "engine", tmp_path))


def test_inserting_twice_changes_nothing_more() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = insert(page, "imports", "new")
    assert once == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert insert(once, "imports", "new") == once


@pytest.mark.parametrize("page", ["", f"{BEGIN}\n", f"{END}\n", f"{END}\n{BEGIN}\n"])
def test_a_page_without_a_place_is_an_error(page: str) -> None:
    with pytest.raises(PlaceError, match="put the lines"):
        insert(page, "imports", "new")
