"""Transfer engines: one row each, and what a server says where one cannot be used."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from sglang_cdsp.args import CdspConfigError
from sglang_cdsp.checks import check_transfer_backend
from sglang_cdsp.transfer.registry import TRANSFER_ENGINES, TransferEngine

each = pytest.mark.parametrize("engine", TRANSFER_ENGINES, ids=lambda engine: engine.name)


@each
def test_a_row_is_all_that_the_pool_needs(engine: TransferEngine) -> None:
    """SGLang knows the name, the controller reads its messages, the manager is a pool member's."""
    from sglang.srt.disaggregation.utils import TransferBackend

    from sglang_cdsp.controller.decode.wire import wire_format
    from sglang_cdsp.transfer.manager import PoolKVManager

    assert TransferBackend(engine.name).value == engine.name
    assert wire_format(engine.name)
    found = engine.manager_class()
    assert issubclass(found, PoolKVManager)
    assert not found.__abstractmethods__


def test_every_form_of_messages_has_a_row() -> None:
    from sglang_cdsp.controller.decode.wire import wire_formats

    forms = wire_formats(writes_notify=True, generations=False)
    assert set(forms) == {engine.name for engine in TRANSFER_ENGINES}


def test_the_rows_bring_neither_sglang_nor_torch_nor_an_engines_library() -> None:
    program = "import sys; import sglang_cdsp.transfer.registry; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    found = {name.split(".")[0] for name in loaded.stdout.split()}
    assert found & {"sglang", "torch", "nixl", "mooncake"} == set()


def test_an_engine_without_a_row() -> None:
    with pytest.raises(CdspConfigError) as caught:
        check_transfer_backend("mori")
    assert "over nixl or mooncake, not over mori" in str(caught.value)
    assert "set --disaggregation-transfer-backend nixl" in str(caught.value)


def test_engines_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mooncake", ModuleType("mooncake"))
    monkeypatch.setitem(sys.modules, "mooncake.engine", ModuleType("mooncake.engine"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for engine in TRANSFER_ENGINES:
        check_transfer_backend(engine.name)


def test_nixl_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CdspConfigError, match=r"install nixl, or set .*mooncake on both"):
        check_transfer_backend("nixl")


def raising(error: ImportError) -> Callable[[str], None]:
    """An import that ends with ``error``."""

    def load(name: str) -> None:
        assert name == "mooncake.engine"
        raise error

    return load


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ModuleNotFoundError("No module named 'mooncake'"), "install mooncake-transfer-engine"),
        (ImportError("libibverbs.so.1: cannot open shared object file"), "libibverbs1"),
    ],
)
def test_what_mooncake_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, error: ImportError, remedy: str
) -> None:
    monkeypatch.setattr(importlib, "import_module", raising(error))
    with pytest.raises(CdspConfigError) as caught:
        check_transfer_backend("mooncake")
    assert str(error) in str(caught.value)
    assert remedy in str(caught.value)
    assert "--disaggregation-transfer-backend nixl" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("SGLANG_MOONCAKE_SEND_AUX_TCP", "1"), ("SGLANG_MOONCAKE_CUSTOM_MEM_POOL", "NVLINK")],
)
def test_metadata_beside_mooncake_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: None)
    monkeypatch.setenv(name, value)
    with pytest.raises(CdspConfigError, match=f"unset .*{name}"):
        check_transfer_backend("mooncake")
