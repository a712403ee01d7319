"""Hooks as data: every kind is put in place by SGLang's registry, and missed where it is not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from sglang import __version__
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_cdsp import hook_table
from sglang_cdsp.hook_table import Hook, HookNotLive, Kind, resolve

REMEDY = "Do something else."
FUNCTION, CLASS, METHOD = "some_sglang.work", "some_sglang.Worker", "some_sglang.Worker.turn"


class Ours:
    """Stands in the place of a class."""


def before(*args: Any) -> None:
    """Changes nothing."""


def after(result: str, *args: Any) -> str:
    return f"{result}, then ours"


def around(original: Callable[..., str], *args: Any) -> str:
    return f"ours around {original(*args)}"


def instead(*args: Any) -> str:
    return "ours"


def answers_ours(work: Callable[[], str]) -> bool:
    return "ours" in work()


def moved(found: object) -> bool:
    raise AttributeError("it\nmoved")


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty hook registry, and a module of SGLang's with one that imported from it."""
    monkeypatch.setattr(HookRegistry, "_hooks", type(HookRegistry._hooks)(list))
    monkeypatch.setattr(HookRegistry, "_patched", set())
    stock, importer = ModuleType("some_sglang"), ModuleType("its_importer")

    def work() -> str:
        return "stock"

    class Worker:
        @classmethod
        def turn(cls) -> str:
            return "stock"

    vars(stock).update(work=work, Worker=Worker)
    vars(importer).update(work=work)
    for module in (stock, importer):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def hook(ours: str, kind: Kind, target: str = FUNCTION, **more: Any) -> Hook:
    return Hook(target, f"{__name__}:{ours}", kind, "it does much", **more)


CASES = [
    hook("before", Kind.BEFORE),
    hook("after", Kind.AFTER),
    hook("around", Kind.AROUND),
    hook("instead", Kind.REPLACE),
    hook("instead", Kind.ASSIGN),
    hook("Ours", Kind.REPLACE, CLASS),
    hook("Ours", Kind.ASSIGN, CLASS),
    hook("around", Kind.AROUND, METHOD),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind.name}-{case.target}")
def test_a_hook_is_live_once_sglang_applied_it(case: Hook) -> None:
    assert hook_table.live([case]) == []
    with pytest.raises(HookNotLive):
        hook_table.verify([case], REMEDY)
    hook_table.apply([case])
    HookRegistry.apply_hooks()
    hook_table.verify([case], REMEDY)
    assert hook_table.live([case]) == [case.target]


def test_applied_twice_it_is_called_once() -> None:
    case = hook("around", Kind.AROUND)
    hook_table.apply([case])
    hook_table.apply([case])
    HookRegistry.apply_hooks()
    assert resolve(FUNCTION)() == "ours around stock"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind.name}-{case.target}")
def test_a_hook_of_somebody_else_at_the_same_place_is_not_ours(case: Hook) -> None:
    class Theirs:
        @classmethod
        def turn(cls) -> str:
            return "theirs"

    def theirs(*args: Any) -> str:
        return "theirs"

    HookRegistry.register(case.target, Theirs if case.target == CLASS else theirs, HookType.REPLACE)
    HookRegistry.apply_hooks()
    assert "still in place" in hook_table.fault(case)


def test_ours_is_found_below_the_wrapper_of_somebody_else() -> None:
    case = hook("around", Kind.AROUND)
    hook_table.apply([case])
    HookRegistry.register(FUNCTION, lambda result: None, HookType.AFTER)
    HookRegistry.apply_hooks()
    assert hook_table.fault(case) == ""


def test_a_replaced_function_is_no_assigned_one() -> None:
    """A spawned process would find the stock function by the wrapper's name."""
    hook_table.apply([hook("instead", Kind.REPLACE)])
    HookRegistry.apply_hooks()
    assert resolve(FUNCTION)() == "ours"
    assert "still in place" in hook_table.fault(hook("instead", Kind.ASSIGN))


def test_importers_must_hold_ours_too() -> None:
    case = hook("around", Kind.AROUND, also=("its_importer.work",))
    stock = resolve("its_importer.work")
    hook_table.apply([case])
    HookRegistry.apply_hooks()
    assert hook_table.fault(case) == ""
    sys.modules["its_importer"].work = stock  # type: ignore[attr-defined]
    assert "its_importer.work" in hook_table.fault(case)


def test_behaviour_is_tried_where_a_probe_is_named() -> None:
    plain = hook("before", Kind.BEFORE)
    probed = hook("before", Kind.BEFORE, probe=f"{__name__}:answers_ours")
    hook_table.apply([plain])
    HookRegistry.apply_hooks()
    assert hook_table.fault(plain) == ""
    assert "does not behave as ours" in hook_table.fault(probed)


def test_a_hook_that_cannot_be_looked_at_is_not_live() -> None:
    good = hook("around", Kind.AROUND)
    hook_table.apply([good])
    HookRegistry.apply_hooks()
    bad = hook("around", Kind.AROUND, probe=f"{__name__}:moved")
    gone = hook("around", Kind.AROUND, "some_sglang.gone")
    with pytest.raises(HookNotLive) as caught:
        hook_table.verify([good, bad, gone], REMEDY)
    message = str(caught.value)
    assert "some_sglang.work (it does much)" in message
    assert "it moved" in message
    assert "the hook on some_sglang.gone" in message, "all are named"
    assert f"sglang {__version__}" in message
    assert message.endswith(REMEDY)
    assert "\n" not in message


def test_nothing_swallows_a_missing_hook() -> None:
    """SGLang catches ``Exception`` around plugins; ``SystemExit`` ends the server."""
    assert issubclass(HookNotLive, SystemExit)
    assert not issubclass(HookNotLive, Exception)


def test_paths_that_lead_nowhere() -> None:
    with pytest.raises(ImportError, match=r"no_such_package\.x"):
        resolve("no_such_package.x")
    with pytest.raises(AttributeError):
        resolve("sglang_cdsp.hook_table.no_such_name")
    assert resolve("sglang_cdsp.hook_table.Hook.__name__") == "Hook"
    assert resolve("sglang_cdsp.hook_table:Hook.__name__") == "Hook"
