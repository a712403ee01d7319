"""A model that is not known to be plain is refused by its folder, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_cdsp.architectures import OWN_POOL
from sglang_cdsp.launch.model import identity, problems


def found(folder: Path, *, override: str = "{}", **config: object) -> list[str]:
    (folder / "config.json").write_text(json.dumps(config))
    args = SimpleNamespace(model_path=str(folder), json_model_override_args=override, revision=None)
    return problems(args)


def test_a_plain_model_passes(tmp_path: Path) -> None:
    assert found(tmp_path, architectures=["LlamaForCausalLM"]) == []


@pytest.mark.parametrize("name", ["Llama4ForCausalLM", "Gemma2ForCausalLM", "UnheardOf"])
def test_any_other_is_named(tmp_path: Path, name: str) -> None:
    [line] = found(tmp_path, architectures=[name])
    assert line.startswith(f"--model-path {tmp_path}: ")
    assert name in line
    assert "without --cdsp" in line


def test_what_the_command_line_changes_counts(tmp_path: Path) -> None:
    plain = {"architectures": ["LlamaForCausalLM"]}
    [line] = found(tmp_path, override='{"attention_chunk_size": 8192}', **plain)
    assert "chunked attention" in line


@pytest.mark.parametrize("name", sorted(OWN_POOL))
def test_windows_in_a_pool_of_their_own_need_the_flag(tmp_path: Path, name: str) -> None:
    [line] = found(tmp_path, architectures=[name])
    assert "add --disable-hybrid-swa-memory, here and to decode servers" in line
    args = arguments(str(tmp_path))
    args.disable_hybrid_swa_memory = True
    assert problems(args) == []


def test_windows_that_sglang_keeps_in_the_plain_pool_need_none(tmp_path: Path) -> None:
    for name in ("Gemma3ForCausalLM", "Exaone4ForCausalLM"):
        assert found(tmp_path, architectures=[name]) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "7"])
def test_what_cannot_be_read_is_left_to_sglang(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert problems(arguments(str(tmp_path))) == []


def arguments(model: str) -> SimpleNamespace:
    return SimpleNamespace(model_path=model, json_model_override_args="{}", revision=None)


@pytest.mark.parametrize("model", ["some/model", "/no/such/folder", "not a name", ""])
def test_what_is_not_on_this_machine_is_left_to_the_instances(model: str) -> None:
    assert problems(arguments(model)) == []


def test_what_a_hub_sent_before_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "config.json"
    cached.write_text('{"architectures": ["Llama4ForCausalLM"]}')
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: str(cached))
    [line] = problems(arguments("some/model"))
    assert line.startswith("--model-path some/model: ")
    assert "Llama4ForCausalLM" in line


def args_of(model: Path | str, overrides: str = "{}", revision: str | None = None) -> Any:
    return SimpleNamespace(
        model_path=str(model), revision=revision, json_model_override_args=overrides
    )


def test_a_model_is_known_by_its_place_and_its_configuration(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"architectures": ["LlamaForCausalLM"]}')
    before = identity(args_of(tmp_path))
    assert before == identity(args_of(f"{tmp_path}/./"))
    assert before[0] == str(tmp_path)
    assert before[1] != identity(args_of(tmp_path, '{"num_hidden_layers": 1}'))[1]
    config.write_text('{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}')
    assert before[1] != identity(args_of(tmp_path))[1]


def test_a_model_that_is_not_here_is_known_by_its_name() -> None:
    assert identity(args_of("nobody/nothing")) == ("nobody/nothing", "")
    assert identity(args_of("nobody/nothing", revision="v2")) == ("nobody/nothing@v2", "")
