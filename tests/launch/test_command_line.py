"""Any combination of mistakes on a command line names each of them, and nothing else."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sglang.srt.server_args import ServerArgs

from sglang_cdsp.args import add_cli_args, from_namespace
from sglang_cdsp.launch.command_line import problems_of
from sglang_cdsp.launch.unknown_flags import keep_unknown_flags

LOCAL = ("127.0.0.1", 0)

Mistakes = dict[str, tuple[tuple[str, ...], dict[str, Any]]]


@pytest.fixture
def mistakes(tmp_path: Path) -> Iterator[Mistakes]:
    """What a line must name, our flags that are wrong, and SGLang's arguments that are."""
    broken, model = tmp_path / "broken.json", tmp_path / "model"
    broken.write_text("{")
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["Llama4ForCausalLM"]}')
    with socket.create_server(LOCAL) as http, socket.create_server(LOCAL) as boot:
        yield {
            "--cdsp-policy": (("--cdsp-policy", "fixed-sp:9"), {}),
            "--cdsp-sp-sizes": (("--cdsp-sp-sizes", "1,x"), {}),
            "--cdsp-min-chunk": (("--cdsp-min-chunk", "8"), {}),
            "--cdsp-improvement-rate 2": (("--cdsp-improvement-rate", "2"), {}),
            "--cdsp-improvement-rates": (("--cdsp-improvement-rates", str(broken)), {}),
            "--cdsp-latency-model": (("--cdsp-latency-model", str(broken)), {}),
            "--cdsp-instances-per-node": (("--cdsp-instances-per-node", "two"), {}),
            "--cdsp-decode-max-total-tokens": (("--cdsp-decode-max-total-tokens", "0"), {}),
            "--cdsp-plan-log": (("--cdsp-plan-log", str(tmp_path)), {}),
            "--cdsp-plain": (("--cdsp-plain", "yes"), {}),
            "--pp-size": ((), {"pp_size": 2}),
            "--nnodes": ((), {"nnodes": 2}),
            "--schedule-policy": ((), {"schedule_policy": "lpm"}),
            "--nccl-port": ((), {"nccl_port": 5000}),
            "--attention-backend": ((), {"attention_backend": "wave"}),
            "--disaggregation-transfer-backend": (
                (),
                {"disaggregation_transfer_backend": "mori"},
            ),
            "--port": ((), {"port": http.getsockname()[1]}),
            "--disaggregation-bootstrap-port": (
                (),
                {"disaggregation_bootstrap_port": boot.getsockname()[1]},
            ),
            "--model-path": ((), {"model_path": str(model)}),
        }


def told(flags: list[str], **changed: Any) -> list[str]:
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    keep_unknown_flags(parser)
    cdsp, problems = from_namespace(parser.parse_args(["--cdsp", *flags]))
    assert cdsp is not None
    values = {
        "model_path": "some/model",
        "dp_size": 4,
        "page_size": 16,
        "disaggregation_mode": "prefill",
        "port": 0,
        "disaggregation_bootstrap_port": 0,
        **changed,
    }
    return problems + problems_of(cdsp, ServerArgs(**values))


def test_a_good_command_line_has_no_line(mistakes: Mistakes) -> None:
    assert told([]) == []


def test_any_combination_of_mistakes_names_each(mistakes: Mistakes) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sets(st.sampled_from(sorted(mistakes))))
    def check(made: set[str]) -> None:
        flags = [word for name in sorted(made) for word in mistakes[name][0]]
        changed = {k: v for name in made for k, v in mistakes[name][1].items()}
        lines = told(flags, **changed)
        assert len(lines) == len(made)
        for name in made:
            assert any(name in line for line in lines), name
        assert not any("\n" in line for line in lines)

    check()
