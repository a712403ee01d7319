"""What is not installed is named with what installs it, for every program."""

import subprocess
import sys
from pathlib import Path

import pytest

from sglang_cdsp.cli.needs import explain, lacking, remedy

WITHOUT = """
import runpy, sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {gone!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Gone())
sys.argv = {arguments!r}
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


def run_without(gone: str, module: str, *arguments: str) -> tuple[int, str]:
    """Status and stderr of `python -m module` in a Python that lacks the package `gone`."""
    code = WITHOUT.format(gone=gone, module=module, arguments=[module, *arguments])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gone", "module", "arguments", "says"),
    [
        ("requests", "sglang_cdsp", ("profile", "--help"), "pip install 'sglang-cdsp[demo]'"),
        ("numpy", "sglang_cdsp", ("simulate", "--help"), "needs numpy: pip install numpy"),
        ("openai", "sglang_cdsp.demo", (), "needs openai: pip install 'sglang-cdsp[demo]'"),
        ("tokenizers", "sglang_cdsp.demo", (), "pip install 'sglang-cdsp[demo]'"),
        ("sglang_router", "sglang_cdsp.demo", (), "pip install 'sglang-cdsp[demo]'"),
        ("sglang", "sglang_cdsp.demo", (), "install SGLang, see docs/install.md"),
        ("matplotlib", "bench.paper.run", (), "pip install 'sglang-cdsp[plots]'"),
    ],
)
def test_every_program_names_what_it_lacks(
    gone: str, module: str, arguments: tuple[str, ...], says: str
) -> None:
    status, err = run_without(gone, module, *arguments)
    assert status == 2
    assert says in err
    assert err.count("\n") == 1
    assert err.startswith(f"python -m {module}")


def test_remedies() -> None:
    assert remedy("tokenizers.models") == "pip install 'sglang-cdsp[demo]'"
    assert remedy("torch") == "install SGLang, see docs/install.md"
    assert remedy("some_thing") == "pip install some-thing"
    assert lacking(("json", "sys")) == ""
    assert lacking(("json", "no_such_a", "no_such_b.c")).startswith("needs no_such_a, no_such_b.c:")


def test_only_what_others_bring_is_a_lack(tmp_path: Path) -> None:
    broken = ImportError("libGL.so.1: cannot open shared object file", name="torch")
    assert explain(broken) == (
        "needs torch, which cannot be imported (libGL.so.1: cannot open shared object file): "
        "install SGLang, see docs/install.md"
    )
    ours = ModuleNotFoundError("No module named 'sglang_cdsp.x'", name="sglang_cdsp.x")
    with pytest.raises(ModuleNotFoundError):
        explain(ours)
    with pytest.raises(ImportError):
        explain(ImportError("cannot import name"))
