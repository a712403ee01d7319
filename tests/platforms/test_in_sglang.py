"""The platform inside SGLang, each test in a process of its own as a server would be."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sglang_cdsp.platforms import controller
from sglang_cdsp.platforms.controller import install_controller_entry, run_controller_with_plugins
from sglang_cdsp.platforms.hooks import PLATFORM_HOOKS


def run(script: str, **environment: str) -> str:
    """Run ``script`` in a new interpreter away from the tree; return what it printed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SGLANG_")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sglang_selects_the_platform_here_and_in_spawned_processes() -> None:
    out = run(
        "import multiprocessing, sglang, torchvision\n"
        "from sglang.srt.platforms import current_platform as platform\n"
        "from sglang.srt.utils import get_device\n"
        "print(type(platform).__name__, platform.is_out_of_tree(), get_device())\n"
        "with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "    print(pool.apply(get_device))\n"
    )
    assert out.split() == ["TorchCpuPlatform", "True", "cpu", "cpu"]


def test_every_hook_is_live_also_in_the_controller_process() -> None:
    out = run(
        "import pkgutil\n"
        "from sglang.srt.entrypoints import engine\n"
        "from sglang.srt.managers import data_parallel_controller as stock\n"
        "from sglang_cdsp.platforms import controller\n"
        "from sglang_cdsp.platforms.hooks import PLATFORM_HOOKS, check_hooks_live\n"
        "controller.controller_loads_plugins = lambda: False\n"
        "controller.install_controller_entry()\n"
        "entry = engine.run_data_parallel_controller_process\n"
        "def controller_process(**given):\n"
        "    check_hooks_live()\n"
        "    for hook in PLATFORM_HOOKS:\n"
        "        target = pkgutil.resolve_name(hook.target)\n"
        "        print(hasattr(target, '__wrapped__'), target.__module__, given)\n"
        "stock.run_data_parallel_controller_process = controller_process\n"
        "entry(answer=42)\n"
    )
    lines = out.splitlines()
    assert len(lines) == len(PLATFORM_HOOKS)
    assert all(line.startswith("True sglang.") and line.endswith("42}") for line in lines)


@pytest.mark.parametrize("loads", [False, True])
def test_a_controller_entry_that_loads_plugins_is_left_in_place(
    monkeypatch: pytest.MonkeyPatch, loads: bool
) -> None:
    """Somebody else's, and SGLang's own where that does."""
    monkeypatch.setattr(controller, "controller_loads_plugins", lambda: loads)
    modules = {
        "sglang.srt.entrypoints": SimpleNamespace(engine=(engine := SimpleNamespace())),
        "sglang.srt.managers": SimpleNamespace(
            data_parallel_controller=(stock := SimpleNamespace())
        ),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    stock.run_data_parallel_controller_process = object()
    engine.run_data_parallel_controller_process = theirs = object()
    install_controller_entry()
    assert engine.run_data_parallel_controller_process is theirs
    engine.run_data_parallel_controller_process = stock.run_data_parallel_controller_process
    install_controller_entry()
    installed = engine.run_data_parallel_controller_process
    assert installed is (
        stock.run_data_parallel_controller_process if loads else run_controller_with_plugins
    )


def test_a_hook_without_its_target_stops_the_server_with_its_name() -> None:
    out = run(
        "import sglang\n"
        "from sglang.srt.managers import scheduler\n"
        "from sglang.srt.plugins import load_plugins\n"
        "from sglang_cdsp.hook_table import HookNotLive\n"
        "from sglang_cdsp.platforms.hooks import check_hooks_live\n"
        "del scheduler.Scheduler.on_idle\n"
        "load_plugins()\n"
        "try:\n"
        "    check_hooks_live()\n"
        "except HookNotLive as error:\n"
        "    print(error)\n"
    )
    assert "Scheduler.on_idle" in out
    assert "sglang 0." in out
    assert "NixlKVManager" not in out
