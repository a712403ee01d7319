"""`python -m sglang_cdsp`: the commands that it offers."""

import pytest

from sglang_cdsp.__main__ import commands
from tests.cli.calls import call


def test_the_dispatcher_offers_the_commands_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands()["plan"] == "plan one prompt at a given pool state and say why."
    assert "parser" not in commands()
    status, out, _ = call(capsys, "--help")
    assert status == 0
    assert "plan one prompt" in out
    status, _, err = call(capsys, "dance")
    assert status == 2
    assert err.count("\n") == 1
    assert "'dance'" in err
