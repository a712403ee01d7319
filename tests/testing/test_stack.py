"""The servers that are planned: who talks to whom."""

from collections.abc import Sequence
from pathlib import Path

from sglang_cdsp.testing.stack import Deployment, Side, disaggregated, side_by_side

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
