"""A layout serves until a signal, or until a part of it has died; then nothing of it is left."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from sglang_cdsp.serve.layout import LAUNCHER, Layout, Part
from sglang_cdsp.serve.run import look, serve
from sglang_cdsp.serve.screen import Seen
from sglang_cdsp.stack.processes import Command
from tests.serve.stand_ins import BROKEN, layout_of, part

OWNER = """
import sys
from pathlib import Path
from rich.console import Console
from sglang_cdsp.serve.run import serve
from tests.serve import stand_ins
from tests.serve.stand_ins import layout_of, part
front = part("front", script=getattr(stand_ins, sys.argv[2]))
layout = layout_of(front, part("behind"), part("pool"))
status = serve(layout, Path(sys.argv[1]), 60, 1, Console(), Console(stderr=True))
sys.exit(status)
"""


def served(layout: Layout, logs: Path) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status = serve(layout, logs, 60, 1, Console(file=out), Console(file=err, width=200))
    return status, out.getvalue(), err.getvalue()


def test_a_part_that_dies_ends_the_rest_with_its_reason(tmp_path: Path) -> None:
    layout = layout_of(part("front"), part("pool", "the disk is full"))
    status, out, err = served(layout, tmp_path)
    assert status == 1
    assert "Ctrl-C" in out
    assert "pool ended with exit status 3, and with it all has ended" in err
    assert "pool: the disk is full" in err
    assert str(tmp_path / "pool.log") in err
    assert "told to end" in (tmp_path / "front.log").read_text()


def test_a_part_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    layout = layout_of(part("front"), part("pool", script=BROKEN))
    status, out, err = served(layout, tmp_path)
    assert (status, out) == (1, "")
    assert "pool ended with exit status 4" in err
    assert "pool: ValueError: no weights here" in err


def owner_of(logs: Path, front: str) -> subprocess.Popen[str]:
    """A program that serves three parts, which are up; ``front``: the script of the first."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(logs), front],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert owner.stdout is not None
    assert any("Ctrl-C" in line for line in owner.stdout)
    return owner


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_front_first_and_then_all(number: signal.Signals, tmp_path: Path) -> None:
    owner = owner_of(tmp_path, "SERVER")
    owner.send_signal(number)
    _, err = owner.communicate(timeout=60)
    assert owner.returncode == 0, err
    assert "all servers have ended" in err
    told = {
        name: int(re.findall(r"told to end (\d+)", (tmp_path / f"{name}.log").read_text())[0])
        for name in ("front", "behind", "pool")
    }
    assert min(told, key=lambda name: told[name]) == "front"


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """A front that goes on with what it has begun is killed when it is asked for again."""
    owner = owner_of(tmp_path, "STUBBORN")
    assert owner.stderr is not None
    owner.send_signal(signal.SIGINT)
    assert any("waiting for front to end" in line for line in owner.stderr)
    assert owner.poll() is None
    owner.send_signal(signal.SIGINT)
    _, err = owner.communicate(timeout=60)
    assert owner.returncode == 0, err
    assert "killing front" in err


def test_a_pool_that_does_not_answer_shows_nothing() -> None:
    assert look(layout_of(part("pool"))) == Seen()


@pytest.mark.parametrize(
    ("flags", "asked_with"),
    [
        ((), None),
        (("--api-key=user", "--admin-api-key", "admin"), "Bearer admin"),
        (("--api-key", "user"), "Bearer user"),
    ],
)
def test_a_pool_is_asked_with_its_own_key(flags: Sequence[str], asked_with: str | None) -> None:
    heard: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((self.path, self.headers["Authorization"]))
            self.send_response(200 if self.path == "/cdsp/status" else 404)
            self.end_headers()
            self.wfile.write(b'{"policy": "cdsp"}')

        def log_message(self, *_: object) -> None:
            """Not to stderr."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        pool = Part(Command("pool", ("python", LAUNCHER, *flags), url), url, "")
        seen = look(layout_of(pool))
        server.shutdown()
    assert seen == Seen({"policy": "cdsp"}, page=False)
    assert heard == [("/cdsp/status", asked_with), ("/cdsp", asked_with)]
