"""The A/B's records: what is run, what is kept, what the tables say."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, cast

import psutil
import pytest

from bench.servers.ab import STOCK, arguments_of, plain, sides
from bench.servers.ab_client import LONGEST_STOP_S, only
from bench.servers.ab_report import Run, Slo, report
from bench.servers.mix import LONG, SHORT, is_long, lengths
from sglang_cdsp.stack.processes import Command, ServerProcess

SLO = Slo(short=1.0, long=4.0, tpot=0.1)


def line(side: str, repeat: int, ttfts: Sequence[float], errors: Sequence[str] = ()) -> Any:
    """Two short prompts and a long one in ten seconds on two cores."""
    return {
        "side": side,
        "rate": 2.0,
        "repeat": repeat,
        "tokens": [100, 200, 5000],
        "ttft_s": list(ttfts),
        "tpot_s": [0.03, 0.05, 0.2],
        "errors": list(errors) or ["", "", ""],
        "duration_s": 10.0,
        "wall_s": 10.0,
        "cpu_s": {
            "cores": 2,
            "all": 14.0,
            "prefill": 8.0,
            "decode": 3.0,
            "client": 1.0,
            "router": 1.0,
        },
    }


def test_a_run_counts_what_was_answered() -> None:
    run = Run.of(line("a", 0, [0.5, 2.0, 3.0]))
    assert run.bucket("short").tolist() == [0.5, 2.0]
    assert run.bucket("long").tolist() == [3.0]
    assert run.tpot_s == pytest.approx([0.03, 0.05, 0.2])
    assert run.goodput(SLO) == pytest.approx(0.1)  # the second's TTFT, the third's TPOT too slow
    assert Run.of(line("a", 0, [0.5, 0.0, 3.0], ["", "refused", ""])).failed == 1


def test_ratios_are_to_stock_in_the_same_repeats() -> None:
    lines = [
        *(line(STOCK, 0, [1.0, 1.0, 4.0]), line("cdsp", 0, [0.5, 0.5, 2.0])),
        *(line(STOCK, 1, [2.0, 2.0, 8.0]), line("cdsp", 1, [3.0, 3.0, 4.0])),
    ]
    table = report(lines, SLO).splitlines()
    (row,) = [text for text in table if text.startswith("| `cdsp`")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "1.75 (1.17; 0.50 to 1.50)"
    assert cells[3] == "3.00 (0.50; 0.50 to 0.50)"
    (base,) = [text for text in table if text.startswith("| `stock`")]
    assert base.startswith("| `stock` | 1.50 | 2.00 | 6.00 |")
    assert "decode 15%, client 5%, router 5%, others 5%" in table[-1]


def test_every_side_has_the_same_cores_and_no_prefix_cache() -> None:
    stock, pool = sides(["fixed-sp:2"], ("--more",), Path("logs"), [4096])
    assert (stock.name, stock.cores, len(stock.prefill)) == (STOCK, ("0", "1"), 2)
    assert (pool.name, pool.cores, len(pool.prefill)) == ("fixed-sp:2", ("0|1",), 1)
    assert {"--cdsp", "--more"} <= set(pool.prefill[0])
    assert "--cdsp" not in stock.prefill[0]
    assert all("--disable-radix-cache" in flags for s in (stock, pool) for flags in s.prefill)


def test_stock_is_tried_at_several_chunk_sizes() -> None:
    base, other = sides([], (), Path("logs"), [4096, 2048])
    assert (base.name, other.name) == (STOCK, f"{STOCK}-2048")
    for side, size in ((base, "4096"), (other, "2048")):
        for flags in side.prefill:
            assert flags[flags.index("--chunked-prefill-size") + 1] == size


def test_commands_name_no_folder_of_this_machine() -> None:
    scratch = Path("/somewhere/else")
    given = arguments_of("http://u", scratch / "checkpoint", scratch / "d.jsonl", 5, 2.0, 1, 8)
    assert "/somewhere" not in plain(" ".join([sys.executable, *given]), scratch)


def test_the_mix_is_seeded_and_has_its_share_of_long_prompts() -> None:
    drawn = lengths(3, 50)
    assert drawn == lengths(3, 50) != lengths(4, 50)
    assert sum(map(is_long, drawn)) == 10
    assert all(SHORT[0] <= n <= SHORT[1] or LONG[0] <= n <= LONG[1] for n in drawn)


def eventually(condition: Callable[[], object]) -> bool:
    """Whether it comes true; a signal takes a moment to arrive."""
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Family:
    """A process with a child, as `only` sees a server."""

    def __init__(self, name: str, *flags: str, port: int = 0) -> None:
        self.command = Command(name, ("server", *flags), f"http://127.0.0.1:{port}/health")
        code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
        self.parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        self.pid = self.parent.pid
        assert eventually(lambda: psutil.Process(self.pid).children())
        self.child = psutil.Process(self.pid).children()[0]

    def members(self) -> list[int]:
        return [self.pid, self.child.pid]

    def end(self) -> None:
        self.parent.communicate(b"\n")


def test_only_the_measured_servers_run() -> None:
    awake, idle = Family("awake"), Family("idle")
    try:
        servers = [cast(ServerProcess, family) for family in (awake, idle)]
        with only(servers[:1], servers):
            assert eventually(lambda: idle.child.status() == psutil.STATUS_STOPPED)
            assert psutil.Process(idle.pid).status() != psutil.STATUS_STOPPED
            assert awake.child.status() != psutil.STATUS_STOPPED
        assert eventually(lambda: idle.child.status() != psutil.STATUS_STOPPED)
    finally:
        idle.child.send_signal(signal.SIGCONT)
        awake.end()
        idle.end()


class Announced(BaseHTTPRequestHandler):
    """A pool's first process, which hears of stops and remembers how its child was meanwhile."""

    heard: ClassVar[list[tuple[str, object, str]]] = []
    child: ClassVar[psutil.Process | None] = None

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.child is not None
        self.heard.append((self.path, body, self.child.status()))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_pool_hears_of_a_stop_before_it_and_after_it() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Announced)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pool, stock = Family("pool", "--cdsp", port=server.server_port), Family("stock")
    Announced.child = pool.child
    try:
        servers = [cast(ServerProcess, family) for family in (pool, stock)]
        with only(servers[1:], servers):
            assert eventually(lambda: pool.child.status() == psutil.STATUS_STOPPED)
            ((path, body, state),) = Announced.heard
            assert (path, body) == ("/cdsp/announce_stop", {"seconds": LONGEST_STOP_S})
            assert state != psutil.STATUS_STOPPED, "told too late"
        assert Announced.heard[1][:2] == ("/cdsp/announce_stop", {"seconds": 0.0})
        with only(servers[:1], servers):
            pass
        assert len(Announced.heard) == 2, "stock knows nothing of it"
    finally:
        pool.child.send_signal(signal.SIGCONT)
        pool.end()
        stock.end()
        server.shutdown()
        server.server_close()
