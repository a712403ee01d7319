"""Which processes serve, and what each is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from sglang_cdsp.form import Form
from sglang_cdsp.launch.defaults import CUDA_PAGE_SIZE
from sglang_cdsp.serve import layout as layouts
from sglang_cdsp.serve.asked import Asked
from sglang_cdsp.serve.devices import Gpu, Machine
from sglang_cdsp.serve.layout import Layout, layout_of, one_server, prefill_and_decode

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


@pytest.mark.parametrize("form", Form)
def test_more_ranks_than_cores_are_noted(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    many, few = (Asked(Path("m"), size, form=form) for size in (5, 4))
    assert any("share 4 cores" in note for note in layout_of(many, CPUS).notes)
    assert not any("share 4 cores" in note for note in layout_of(few, CPUS).notes)
    assert layout_of(many, GPUS).notes == ()


def test_what_is_given_is_not_given_twice() -> None:
    flags = ("--page-size=32", "--disaggregation-transfer-backend", "mooncake")
    asked = Asked(Path("m"), 2, flags=flags)
    for part in prefill_and_decode(asked, GPUS).parts[1:]:
        assert part.server_flags.count("--disaggregation-transfer-backend") == 1
        assert "--page-size" not in part.server_flags


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:5"),
        ("::", "http://[::1]:5"),
        ("10.1.2.3", "http://10.1.2.3:5"),
    ],
)
def test_the_url_is_one_that_this_machine_reaches(host: str, url: str, form: Form) -> None:
    layout = layout_of(Asked("org/model", 2, host=host, port=5, form=form), CPUS)
    assert layout.front.url == url
    assert layout.front.command.health_url == f"{url}/health"
    assert value(layout.front.command.arguments, "--host") == host


@pytest.mark.parametrize("machine", [CPUS, GPUS], ids=["cpus", "gpus"])
def test_one_server_is_its_own_front(machine: Machine) -> None:
    layout = layout_of(dataclasses.replace(ASKED, decode_flags=()), machine)
    (pool,) = layout.parts
    assert layout.front is layout.pool is pool
    assert (layout.copies, pool.url) == (3, "http://127.0.0.1:29123")
    plan = layout.deployment()
    assert (plan.commands, plan.url, plan.first_to_end) == ((pool.command,), pool.url, ())
    assert {"--cdsp", "--cdsp-policy", "--enable-metrics"} <= set(pool.server_flags)
    assert value(pool.server_flags, "--dp-size") == "3"
    assert value(pool.server_flags, "--tp-size") == "2"
    assert value(pool.server_flags, "--port") == "29123"
    assert not any(word.startswith("--disaggregation") for word in pool.server_flags)


@pytest.mark.parametrize("make", [one_server, prefill_and_decode])
def test_files_that_flags_name_are_the_users(
    make: layouts.MakeLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {part.command.directory for part in make(ASKED, CPUS).parts} == {tmp_path}


def test_every_form_has_a_layout() -> None:
    assert set(layouts.LAYOUTS) == set(Form)
