"""Policies from outside of the package: by module and by file, and what is said of wrong ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sglang_cdsp.planner import OptionError, PolicyOptions, PoolView, PromptView, make_policy
from sglang_cdsp.planner.policies.outside import is_outside, load
from sglang_cdsp.planner.policies.registry import POLICY_HELP, Origin, find
from tests.planner.pools import MODEL

OPTIONS = PolicyOptions(MODEL, (1, 2, 4))
HEAD = "from sglang_cdsp.planner.policies.rivals import DataParallel\n"
LEAST = HEAD + 'class Mine(DataParallel):\n    """Does this.\n\n    And more.\n    """\n'


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    """A file with that text; its path as users give it."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(name: str) -> str:
    with pytest.raises(OptionError) as caught:
        find(name)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_class_in_a_file_is_a_policy_by_the_name_it_was_given(tmp_path: Path) -> None:
    name = f"{written(tmp_path, LEAST)}:Mine"
    entry, argument = find(name)
    assert (entry.name, entry.does, entry.origin, argument) == (
        *(name, "Does this.", Origin.OUTSIDE, None),
    )
    policy = make_policy(name, OPTIONS)
    plan = policy.plan(PromptView("r", 5_000), PoolView((1.0, 0.0), None, 2))
    assert plan is not None
    assert (policy.name, plan.policy, plan.placement) == (name, name, ((5_000, (1,)),))
    assert load(name) is load(name), "its module is imported once"


def test_a_class_in_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, LEAST, "a_module_of_ones_own.py")
    monkeypatch.syspath_prepend(tmp_path)
    policy = make_policy("a_module_of_ones_own:Mine", OPTIONS)
    assert policy.name == "a_module_of_ones_own:Mine"
    del sys.modules["a_module_of_ones_own"]


def test_a_policy_says_whether_it_has_an_improvement_rate(tmp_path: Path) -> None:
    path = written(
        tmp_path, LEAST + "    regulated = True\nclass Other(Mine):\n    regulated = 0\n"
    )
    assert find(f"{path}:Mine")[0].regulated
    assert not find(f"{path}:Other")[0].regulated


def test_dataclasses_of_its_module_work(tmp_path: Path) -> None:
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    path = written(tmp_path, head + LEAST + "@dataclass\nclass Note:\n    text: str\n")
    assert find(f"{path}:Mine")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import of nothing", "cannot be imported: SyntaxError: "),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("import no_such_thing", "cannot be imported: ModuleNotFoundError: No module named 'no_su"),
        ("", "Mine has no policy of that name; define one, a sglang_cdsp.planner.Policy"),
        (HEAD, "define one"),
        (HEAD + "class Ours(DataParallel): ...", "no policy of that name; it has Ours"),
        ("Mine = 5", "Mine is no class of sglang_cdsp.planner.Policy"),
        (
            "from sglang_cdsp.planner import Policy\nclass Mine(Policy):\n    def plan(self): ...",
            "Mine has no arrive, check, could_run, explain, finish, step, waiting; add them",
        ),
        (
            LEAST + "    def __init__(self, options, size): ...",
            "Mine wants otherwise (missing a required argument: 'size'); give its other arguments",
        ),
    ],
    ids=lambda text: text[:20],
)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    name = f"{written(tmp_path, text)}:Mine"
    said = refusal(name)
    assert said.startswith(f"policy {name!r}: ")
    assert says in said
    assert refusal(name) == said, "the second time as the first"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/no/such/file.py:Mine", "there is no file '/no/such/file.py'; give its path"),
        ("no_such_module:Mine", "there is no module no_such_module; add its folder to PYTHONPATH"),
        ("json.no_such:Mine", "there is no module json.no_such"),
        ("json:Mine", "Mine has no policy of that name"),
        ("json:loads", "loads is no class of"),
    ],
)
def test_names_that_lead_nowhere(name: str, says: str) -> None:
    assert says in refusal(name)


@pytest.mark.parametrize(
    "name",
    [
        "cdsp:Mine",
        "threshold:Mine",
        "fixed-sp",
        "cdsp",
        "a:1",
        ":A",
        "a:",
        "a..b:C",
        "a b:C",
        "mine.py",
    ],
)
def test_names_that_are_not_from_outside(name: str) -> None:
    """Nothing is imported for them; those of the package win."""
    known = name in ("cdsp", "fixed-sp") or name.partition(":")[0] in ("cdsp", "threshold")
    assert known or not is_outside(name)
    if name != "cdsp":
        assert "unknown policy" in refusal(name) or "positive integer" in refusal(name)


def test_help_says_how_to_name_ones_own() -> None:
    assert "one of your own as MODULE:CLASS or FILE.py:CLASS" in POLICY_HELP
    assert "name your own as MODULE:CLASS or FILE.py:CLASS" in refusal("nonsense")
