"""Hooks are in force when asked for, say so when they are not, and off means stock."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sglang import __version__

from sglang_cdsp import hook_table, hooks, plugin, routes
from sglang_cdsp.args import ENV_VAR, CdspArgs, active_args
from sglang_cdsp.hook_table import HookNotLive, resolve
from sglang_cdsp.launch import controller_watch
from sglang_cdsp.platforms.hooks import PLATFORM_HOOKS
from sglang_cdsp.protocol import heartbeat
from tests.server_options import GOOD, UNREFUSED

REPORT = "REPORT "

# What a process of SGLang looks like after SGLang loaded its plugins, with and without --cdsp.
LOOK = """
import argparse, json, pickle
from sglang.srt.plugins import load_plugins

load_plugins()
load_plugins()
from sglang_cdsp import hook_table, hooks
from sglang.srt.disaggregation import prefill, utils
from sglang.srt.entrypoints import engine
from sglang.srt.managers import data_parallel_controller, scheduler
from sglang.srt.server_args import ServerArgs

def refused(table):
    try:
        hooks.verify(table)
    except SystemExit as error:
        return str(error)
    return None

def manager(module):
    wanted = (utils.TransferBackend.NIXL, utils.KVClassType.MANAGER)
    return module.get_kv_class(*wanted).__module__

parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
nixl = utils.TransferBackend.NIXL
report = {
    "scheduler": scheduler.Scheduler.__module__,
    "managers": [manager(utils), manager(prefill)],
    "sender": utils.get_kv_class(nixl, utils.KVClassType.SENDER).__module__,
    "controller": data_parallel_controller.DataParallelController.__module__,
    "target": engine.run_data_parallel_controller_process.__module__,
    "live": hook_table.live(hooks.SCHEDULER_HOOKS),
    "scheduler_refused": refused(hooks.SCHEDULER_HOOKS),
    "launcher_refused": refused(hooks.LAUNCHER_HOOKS),
    "help": "--cdsp-policy" in parser.format_help(),
}
hook_table.apply(hooks.LAUNCHER_HOOKS, at_once=True)
report["launcher_after"] = refused(hooks.LAUNCHER_HOOKS)
unpickled = pickle.loads(pickle.dumps(engine.run_data_parallel_controller_process))
report["target_in_child"] = unpickled.__module__
report["controller_refused"] = refused(hooks.CONTROLLER_HOOKS)
hook_table.apply(hooks.CONTROLLER_HOOKS)
report["controller_after"] = refused(hooks.CONTROLLER_HOOKS)
report["controller_in_place"] = data_parallel_controller.DataParallelController.__module__
print("REPORT " + json.dumps(report), flush=True)
"""

Look = dict[str, Any]


@pytest.fixture(scope="module")
def looks() -> Iterator[dict[str, Look]]:
    """Two fresh processes side by side: one without ``--cdsp``, one as a pool's scheduler is."""
    plain = {name: value for name, value in os.environ.items() if name != ENV_VAR}
    environments = {"off": plain, "on": {**plain, ENV_VAR: CdspArgs().to_json()}}
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", LOOK],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, environment in environments.items()
    }
    try:
        yield {name: _read(process) for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def _read(process: subprocess.Popen[str]) -> Look:
    out, err = process.communicate(timeout=300)
    lines = [line for line in out.splitlines() if line.startswith(REPORT)]
    assert len(lines) == 1, f"{out}\n{err}"
    return dict(json.loads(lines[0].removeprefix(REPORT)))


def test_off_means_off(looks: dict[str, Look]) -> None:
    off = looks["off"]
    assert off["scheduler"] == "sglang.srt.managers.scheduler"
    assert off["managers"] == ["sglang.srt.disaggregation.nixl.conn"] * 2
    assert off["sender"] == "sglang.srt.disaggregation.nixl.conn"
    stock = "sglang.srt.managers.data_parallel_controller"
    assert (off["controller"], off["target"]) == (stock, stock)
    assert off["live"] == []


def test_the_options_are_offered_before_anything_is_hooked(looks: dict[str, Look]) -> None:
    assert looks["off"]["help"] is True


def test_a_pools_scheduler_has_its_hooks(looks: dict[str, Look]) -> None:
    on = looks["on"]
    assert on["scheduler"] == "sglang_cdsp.engine.scheduler"
    assert on["managers"] == ["sglang_cdsp.transfer.nixl"] * 2
    assert on["sender"] == "sglang.srt.disaggregation.nixl.conn"
    assert on["live"] == [hook.target for hook in hooks.SCHEDULER_HOOKS]
    assert on["scheduler_refused"] is None


def test_missing_hooks_are_named_with_the_release(looks: dict[str, Look]) -> None:
    missing = {
        hooks.SCHEDULER: looks["off"]["scheduler_refused"],
        hooks.CONTROLLER_TARGET: looks["on"]["launcher_refused"],
    }
    for target, message in missing.items():
        assert f"the hook on {target}" in message
        assert f"sglang {__version__}" in message
        assert "start without --cdsp" in message


def test_the_controller_target_is_ours_in_the_spawned_process_too(
    looks: dict[str, Look],
) -> None:
    """A spawned process looks its target up by name: it must not find the stock function."""
    for look in looks.values():
        assert look["launcher_after"] is None
        assert look["target_in_child"] == "sglang_cdsp.controller.process"


def test_the_controller_process_runs_our_controller(looks: dict[str, Look]) -> None:
    for look in looks.values():
        assert f"the hook on {hooks.CONTROLLER} " in look["controller_refused"]
        assert look["controller_after"] is None
        assert look["controller_in_place"] == "sglang_cdsp.controller.controller"


# -- the tables -----------------------------------------------------------------------------


TABLES = (
    hooks.OPTION_HOOKS,
    hooks.ENGINE_HOOKS,
    hooks.LAUNCHER_HOOKS,
    hooks.CONTROLLER_HOOKS,
    hooks.SCHEDULER_HOOKS,
    PLATFORM_HOOKS,
)


def test_every_target_exists_and_has_a_reason() -> None:
    for hook in (hook for table in TABLES for hook in table):
        for path in (hook.target, *hook.also, hook.ours, hook.probe or hook.ours):
            assert callable(resolve(path)), path
        assert hook.why


def test_no_target_is_hooked_twice_in_one_process() -> None:
    for table in TABLES:
        assert len({hook.target for hook in table}) == len(table)


# -- the launching process ------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records what would be installed, without installing it."""
    done: list[str] = []
    monkeypatch.setenv(ENV_VAR, "")
    monkeypatch.setenv(heartbeat.ENV_VAR, "")  # so that it is taken back
    monkeypatch.setattr(routes, "install", lambda *_, **__: done.append("routes"))
    monkeypatch.setattr(controller_watch, "start", lambda *_: done.append("watch"))
    monkeypatch.setattr(hook_table, "apply", lambda table, **_: done.append("apply"))
    monkeypatch.setattr(hook_table, "fault", lambda hook: "")
    monkeypatch.setattr(hooks, "verify", lambda table: done.append("verify"))
    return done


def launch(*flags: str, **server: Any) -> argparse.Namespace:
    """As SGLang: parse the command line, then make its record of it."""
    parser = argparse.ArgumentParser()
    plugin.offer_options(None, parser)
    namespace = parser.parse_args(flags)
    vars(namespace).update({**GOOD, **UNREFUSED, **server})

    def original(cls: type, given: argparse.Namespace) -> argparse.Namespace:
        assert cls is SimpleNamespace
        return given

    made = plugin.read_options(original, SimpleNamespace, namespace)
    assert isinstance(made, argparse.Namespace)
    return made


def test_without_the_flag_the_record_is_stocks(launched: list[str]) -> None:
    made = launch(disable_radix_cache=False)
    assert made.disable_radix_cache is False
    assert active_args() is None
    assert launched == []


def test_with_the_flag_the_pool_is_prepared_and_verified(launched: list[str]) -> None:
    made = launch("--cdsp", "--cdsp-min-chunk", "64", disable_radix_cache=False)
    assert made.disable_radix_cache is True
    args = active_args()
    assert args is not None
    assert args.min_chunk == 64
    assert args.admin.startswith("ipc://")
    assert launched == ["routes", "apply", "verify", "watch"]


def test_options_that_nobody_would_read_are_not_offered(
    launched: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unhooked = hooks.OPTION_HOOKS[1].target
    monkeypatch.setattr(
        hook_table, "fault", lambda hook: "it is not there" if hook.target == unhooked else ""
    )
    with pytest.raises(SystemExit) as caught:
        launch("--cdsp")
    assert caught.value.code == 2, "the parser does not know it"
    assert "it is not there" in caplog.text
    launch()
    assert launched == []


def test_a_pools_process_without_our_modules_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang would log the error and go on as stock."""

    def broken(table: object) -> None:
        raise ImportError("sglang_cdsp.engine.scheduler: it moved")

    monkeypatch.setattr(hook_table, "apply", broken)
    monkeypatch.setenv(ENV_VAR, CdspArgs().to_json())
    with pytest.raises(HookNotLive, match=r"scheduler: it moved\. .* without --cdsp"):
        plugin.register()


@pytest.mark.parametrize(
    ("flags", "server", "says"),
    [
        (["--cdsp"], {"dp_size": 1}, "set --dp-size"),
        (["--cdsp", "--cdsp-sp-sizes", "8"], {}, "lower them or raise --dp-size"),
        (["--cdsp-min-chunk", "64"], {}, "add --cdsp"),
    ],
)
def test_a_refusal_ends_the_launch_with_one_line(
    launched: list[str], flags: list[str], server: dict[str, Any], says: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        launch(*flags, **server)
    message = str(caught.value)
    assert message.startswith("sglang-cdsp: ")
    assert says in message
    assert "\n" not in message
    assert active_args() is None
    assert launched == []


def test_an_untested_release_is_refused(
    launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang.__version__", "0.9.9")
    with pytest.raises(SystemExit, match=r"sglang 0\.9\.9 was not tested"):
        launch("--cdsp")
    launch("--cdsp", "--cdsp-any-sglang-version")
    assert launched == ["routes", "apply", "verify", "watch"]


def test_all_mistakes_of_a_command_line_are_told_at_once(launched: list[str]) -> None:
    flags = ("--cdsp", "--cdsp-policy", "fixed-sp:9", "--cdsp-min-chunk", "few", "--cdsp-polcy=x")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as caught:
        launch(*flags, pp_size=2, disaggregation_bootstrap_port=taken.getsockname()[1])
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert all(line.startswith("sglang-cdsp: ") for line in lines)
    told = ("fixed-sp:9", "'few'", "--cdsp-polcy", "--pp-size", "--disaggregation-bootstrap-port")
    for what in told:
        assert sum(what in line for line in lines) == 1
    assert launched == []
    assert active_args() is None
