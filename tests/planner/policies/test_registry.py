"""The registry: names, help texts, the documentation's table, and what a mere name may load."""

import subprocess
import sys
from pathlib import Path

import pytest

from sglang_cdsp.planner import OptionError, PolicyOptions, PoolView, PromptView, make_policy
from sglang_cdsp.planner.policies.registry import (
    POLICIES,
    POLICY_HELP,
    POLICY_NAMES,
    REGULATED_NAMES,
    Argument,
    Entry,
    find,
)
from tests.planner.policies.policy_pages import BEGIN, END, PAGES, tables, with_tables
from tests.planner.pools import MODEL

OPTIONS = PolicyOptions(MODEL, (1, 2, 4))
ALL = pytest.mark.parametrize("entry", POLICIES, ids=lambda entry: entry.name)


def example(entry: Entry) -> str:
    """The name as a user would write it."""
    return f"{entry.name}:2" if entry.argument else entry.name


@ALL
def test_every_policy_can_be_made_and_bears_its_name(entry: Entry) -> None:
    assert make_policy(example(entry), OPTIONS).name == example(entry)
    assert find(example(entry)) == (entry, 2 if entry.argument else None)


@ALL
def test_every_policy_says_what_it_does_in_a_line(entry: Entry) -> None:
    assert entry.does.strip() == entry.does != ""
    assert not set(entry.does) & set("|\n%"), "for tables and for argparse"
    assert entry.usage in POLICY_NAMES
    assert entry.usage in POLICY_HELP


def test_no_name_comes_twice() -> None:
    assert len({entry.name for entry in POLICIES}) == len(POLICIES)


def test_those_with_an_improvement_rate() -> None:
    assert REGULATED_NAMES == ("cdsp", "cdsp-paper", "cdsp-late", "single-chunk")


@ALL
def test_only_a_regulated_policy_plans_by_the_improvement_rate(entry: Entry) -> None:
    """On an idle pool a rate near 1 takes a smaller group, unless it means nothing."""
    plans = []
    for rate in (0.0, 0.99):
        options = PolicyOptions(MODEL, MODEL.sp_sizes, improvement_rate=rate)
        policy = make_policy(example(entry), options)
        plans.append(policy.plan(PromptView("r", 8_000), PoolView((0.0,) * 16, None, 16)))
    assert (plans[0] != plans[1]) is entry.regulated


@pytest.mark.parametrize("argument", Argument)
def test_help_explains_the_letters(argument: Argument) -> None:
    assert f"{argument.letter}: {argument.meaning}" in POLICY_HELP


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "unknown policy 'nonsense'; choose one of cdsp, "),
        ("fixed-sp", "unknown policy 'fixed-sp'"),
        ("fixed-sp:", "give a positive integer"),
        ("fixed-sp:0", "give a positive integer"),
        ("threshold:-1", "give a positive integer"),
        ("fixed-sp:\u00b2", "give a positive integer"),
        ("cdsp:2", "unknown policy"),
        ("cdsp:", "unknown policy"),
    ],
)
def test_bad_policy_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_policy(name, OPTIONS)


def test_an_unknown_name_gets_all_names() -> None:
    with pytest.raises(OptionError) as caught:
        find("nonsense")
    assert all(name in str(caught.value) for name in POLICY_NAMES)


def test_names_and_flags_load_no_compiled_code() -> None:
    """Every SGLang process with the plugin imports the flags, most of them without --cdsp."""
    heavy = ("numba", "numpy", "sglang", "sglang_cdsp.planner.compiled", "torch")
    code = (
        "import sys, sglang_cdsp.args, sglang_cdsp.planner; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_documentation_has_the_table_of_now(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == with_tables(text), "run python -m tests.planner.policies.policy_pages"
    assert text.count(BEGIN) == text.count(END) == len(tables(text))


def test_the_planners_page_has_the_table() -> None:
    (table,) = tables(PAGES[0].read_text(encoding="utf-8"))
    assert table.count("\n") == 2 + len(POLICIES)
