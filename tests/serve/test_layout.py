"""Which processes serve, and what each is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sglang_cdsp.launch.defaults import CUDA_PAGE_SIZE
from sglang_cdsp.serve import layout as layouts
from sglang_cdsp.serve.asked import Asked
from sglang_cdsp.serve.devices import Gpu, Machine
from sglang_cdsp.serve.layout import Layout, Part, prefill_and_decode
from sglang_cdsp.stack.processes import Command

CPUS = Machine((), 100)
GPUS = Machine((Gpu("some GPU", 1, 1),) * 8, 100)
ASKED = Asked(
    Path("m"),
    3,
    tp_size=2,
    port=29_123,
    pool_flags=("--cdsp-policy", "cdsp"),
    flags=("--enable-metrics",),
    decode_flags=("--max-running-requests", "7"),
)


def value(words: Sequence[str], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.fixture(params=[CPUS, GPUS], ids=["cpus", "gpus"])
def layout(request: pytest.FixtureRequest) -> Layout:
    return prefill_and_decode(ASKED, request.param)


def test_clients_ask_the_router_that_knows_both_servers(layout: Layout) -> None:
    router, prefill, decode = layout.parts
    assert layout.front is router
    assert layout.pool is prefill
    assert layout.deployment().url == router.url == "http://127.0.0.1:29123"
    words = router.command.arguments
    at = words.index("--prefill")
    bootstrap = value(prefill.server_flags, "--disaggregation-bootstrap-port")
    assert words[at + 1 : at + 3] == (prefill.url, bootstrap)
    assert value(words, "--decode") == decode.url


def test_each_flag_reaches_whom_it_is_for(layout: Layout) -> None:
    router, prefill, decode = layout.parts
    assert {"--cdsp", "--cdsp-policy", "--enable-metrics"} <= set(prefill.server_flags)
    assert value(prefill.server_flags, "--dp-size") == "3"
    assert "--enable-metrics" in decode.server_flags
    assert value(decode.server_flags, "--max-running-requests") == "7"
    assert "--max-running-requests" not in prefill.server_flags
    assert not any(word.startswith("--cdsp") for word in decode.server_flags)
    assert router.server_flags == ()
    for server in (prefill, decode):
        assert value(server.server_flags, "--tp-size") == "2"
        assert value(server.server_flags, "--disaggregation-transfer-backend") == "nixl"
    assert [part.has_metrics for part in layout.parts] == [False, True, True]


def test_the_weights_are_loaded_by_every_instance_and_decode(layout: Layout) -> None:
    assert layout.copies == 4


def test_the_router_ends_before_what_it_asks(layout: Layout) -> None:
    assert layout.deployment().first_to_end == ("router",)


def test_every_port_is_its_own(layout: Layout) -> None:
    flags = ("--port", "--disaggregation-bootstrap-port", "--nccl-port")
    ports = [
        word
        for part in layout.parts
        for flag, word in zip(part.command.arguments, part.command.arguments[1:], strict=False)
        if flag in flags
    ]
    assert len(ports) == len(set(ports)) == 5


def test_decode_has_the_gpus_after_the_pools_and_its_pages() -> None:
    _, prefill, decode = prefill_and_decode(ASKED, GPUS).parts
    assert value(decode.server_flags, "--base-gpu-id") == "6"
    assert "--base-gpu-id" not in prefill.server_flags
    for part in (prefill, decode):
        assert value(part.server_flags, "--page-size") == str(CUDA_PAGE_SIZE)
        assert part.command.cpus is None
        assert part.command.nice == 0
    assert str(CUDA_PAGE_SIZE) == layouts.CUDA_PAGE_SIZE


def test_more_ranks_than_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert any("share 4 cores" in note for note in prefill_and_decode(ASKED, CPUS).notes)
    few = Asked(Path("m"), 4)
    assert not any("share 4 cores" in note for note in prefill_and_decode(few, CPUS).notes)
    assert prefill_and_decode(ASKED, GPUS).notes == ()


def test_what_is_given_is_not_given_twice() -> None:
    flags = ("--page-size=32", "--disaggregation-transfer-backend", "mooncake")
    asked = Asked(Path("m"), 2, flags=flags)
    for part in prefill_and_decode(asked, GPUS).parts[1:]:
        assert part.server_flags.count("--disaggregation-transfer-backend") == 1
        assert "--page-size" not in part.server_flags


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:5"),
        ("::", "http://[::1]:5"),
        ("10.1.2.3", "http://10.1.2.3:5"),
    ],
)
def test_the_url_is_one_that_this_machine_reaches(host: str, url: str) -> None:
    layout = prefill_and_decode(Asked("org/model", 2, host=host, port=5), CPUS)
    assert layout.front.url == url
    assert layout.front.command.health_url == f"{url}/health"
    assert value(layout.front.command.arguments, "--host") == host


def test_a_layout_of_one_part_is_its_own_front() -> None:
    """The form of a pool that decodes what it prefills."""
    command = Command("pool", ("python", "-m", layouts.LAUNCHER, "--cdsp"), "http://127.0.0.1:5/h")
    pool = Part(command, "http://127.0.0.1:5", "prefills and decodes", 2)
    plan = Layout((pool,), pool, pool).deployment()
    assert (plan.commands, plan.url, plan.first_to_end) == ((command,), pool.url, ())
    assert pool.server_flags == ("--cdsp",)
