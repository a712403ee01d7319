"""The servers that are planned: who talks to whom."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sglang_cdsp.args import CACHE_VAR
from sglang_cdsp.stack import running as starting
from sglang_cdsp.testing.stack import (
    Deployment,
    Side,
    disaggregated,
    one_server,
    running,
    side_by_side,
)

BIND = "SGLANG_CPU_OMP_THREADS_BIND"
CHECKPOINT = Path("checkpoint")


def arguments(plan: Deployment, name: str) -> tuple[str, ...]:
    (command,) = [command for command in plan.commands if command.name == name]
    return command.arguments


def value(given: Sequence[str], flag: str) -> str:
    return given[given.index(flag) + 1]


def behind(plan: Deployment, router: str) -> list[tuple[str, str]]:
    """URL and bootstrap port of each prefill server that a router names."""
    given = arguments(plan, router)
    return [(given[i + 1], given[i + 2]) for i, word in enumerate(given) if word == "--prefill"]


def address(plan: Deployment, name: str) -> tuple[str, str]:
    given = arguments(plan, name)
    url = f"http://127.0.0.1:{value(given, '--port')}"
    return url, value(given, "--disaggregation-bootstrap-port")


def test_the_router_stands_before_prefill_and_decode() -> None:
    plan = disaggregated(
        CHECKPOINT,
        prefill_flags=("--cdsp", "--dp-size", "2"),
        decode_flags=("--d",),
        flags=("--both",),
    )
    assert behind(plan, "router") == [address(plan, "prefill")]
    assert value(arguments(plan, "router"), "--decode") == plan.urls["decode"]
    assert {"--cdsp", "--both"} <= set(arguments(plan, "prefill"))
    assert {"--d", "--both"} <= set(arguments(plan, "decode"))
    assert "--nccl-port" not in arguments(plan, "prefill")
    assert "--nccl-port" in arguments(plan, "decode")


@pytest.mark.parametrize("cores", [{0, 1}, {0, 1, 2, 3}])
def test_prefill_never_keeps_decode_from_a_core(
    monkeypatch: pytest.MonkeyPatch, cores: set[int]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    sides = [Side("stock", ((), ()), ("0", "1")), Side("pool", ((),), ("0|1",))]
    for plan in (disaggregated(CHECKPOINT), side_by_side(CHECKPOINT, sides)):
        by_name = {command.name: command for command in plan.commands}
        decode = by_name.pop("decode")
        assert len(plan.notes) == 1
        assert decode.nice == 0
        for name, command in by_name.items():
            if "router" in name:
                assert command.nice == 0
            elif len(cores) == 2:
                assert command.nice > 0
            else:
                assert decode.cpus is not None
                mine = command.cpus or [int(c) for c in command.environment[BIND].split("|")]
                assert not set(decode.cpus) & set(mine)


def test_sides_share_decode_and_nothing_else() -> None:
    stock = Side("stock", ((), ("--x",)), ("0", "1"))
    pool = Side("pool", (("--cdsp", "--dp-size", "2"),), ("0|1",))
    plan = side_by_side(CHECKPOINT, [stock, pool], decode_flags=("--d",))
    names = [command.name for command in plan.commands]
    assert names == ["decode", "stock-0", "stock-1", "stock-router", "pool-0", "pool-router"]
    assert behind(plan, "stock-router") == [address(plan, "stock-0"), address(plan, "stock-1")]
    assert behind(plan, "pool-router") == [address(plan, "pool-0")]
    for router in ("stock-router", "pool-router"):
        assert value(arguments(plan, router), "--decode") == plan.urls["decode"]
    assert (plan.url, set(plan.urls)) == (plan.urls["stock"], {"decode", "stock", "pool"})
    bound = {c.name: c.environment.get("SGLANG_CPU_OMP_THREADS_BIND") for c in plan.commands}
    assert (bound["stock-0"], bound["stock-1"], bound["pool-0"]) == ("0", "1", "0|1")
    assert bound["decode"] is None
    ports = [
        word
        for command in plan.commands
        for flag, word in zip(command.arguments, command.arguments[1:], strict=False)
        if flag in ("--port", "--disaggregation-bootstrap-port", "--nccl-port", "--prometheus-port")
    ]
    assert len(set(ports)) == len(ports)


@pytest.mark.parametrize("named", ["", "elsewhere"])
def test_what_is_measured_is_kept_out_of_the_users_cache(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Deployment] = []

    @contextlib.contextmanager
    def begin(plan: Deployment, log_directory: Path, **_: object) -> Iterator[None]:
        begun.append(plan)
        yield

    monkeypatch.setattr(starting, "running", begin)
    monkeypatch.setenv(CACHE_VAR, named)
    with running(one_server(CHECKPOINT), tmp_path):
        pass
    environment = begun[0].commands[0].environment
    # What this process has in its environment is inherited.
    assert environment.get(CACHE_VAR) == (None if named else str(tmp_path / "cache"))
    assert environment["HF_HUB_OFFLINE"] == "1"
