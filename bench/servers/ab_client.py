"""One run of SGLang's own benchmark against a server, and what it cost the machine."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from sglang_cdsp.stack.processes import ServerProcess

BENCHMARK = "sglang.benchmark.serving"
LONGEST_STOP_S = 3600.0
"""How long servers may be stopped at a time; what a pool is told before, see `only`."""


@dataclass(frozen=True)
class Measured:
    """The outcome of one run: the benchmark's own details, and CPU seconds by who took them.

    cpu_s: of the machine's cores during the run, by role; "all" is every busy core second.
    """

    details: Mapping[str, Any]
    cpu_s: Mapping[str, float]
    wall_s: float


class Clients:
    """The benchmark's command line, run each time in a fresh process that has it imported."""

    def __init__(self, log: Path) -> None:
        """Everything that the benchmark prints goes to ``log``."""
        self._log = log
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([BENCHMARK])

    def run(self, arguments: list[str], out: Path, roles: Mapping[str, list[int]]) -> Measured:
        """One run.

        Args:
            arguments: of ``python -m sglang.benchmark.serving``, without the output file.
            out: where its line of details goes.
            roles: process ids whose CPU time is told apart, by role.

        Raises:
            SystemExit, Exception: the benchmark gave up; its words are in the log.
        """
        out.unlink(missing_ok=True)
        line = [*arguments, "--output-file", str(out), "--output-details"]
        before, start = _cpu_seconds(roles), time.monotonic()
        with ProcessPoolExecutor(1, mp_context=self._context) as pool:
            client_s, run_s = pool.submit(_benchmark, line, str(self._log)).result()
        wall_s = time.monotonic() - start
        after = _cpu_seconds(roles)
        spent = {role: after[role] - before[role] for role in before}
        details = json.loads(out.read_text().splitlines()[-1])
        return Measured(details, {**spent, "client": client_s}, max(run_s, wall_s))


@contextlib.contextmanager
def only(awake: Iterable[ServerProcess], servers: Iterable[ServerProcess]) -> Iterator[None]:
    """Let only ``awake`` run among ``servers``: the others' children are stopped meanwhile.

    An idle SGLang server still wakes up some twenty times a second in each of its processes. Its
    first process goes on and answers decode's heartbeats. That of a pool watches the controller, so
    the stop is announced to it, and the end of the stop.
    """
    keep = {server.pid for server in awake}
    others = [server for server in servers if server.pid not in keep]
    pools = [server for server in others if "--cdsp" in server.command.arguments]
    stopped = [pid for server in others for pid in server.members() if pid != server.pid]
    for pool in pools:
        announce_stop(pool, LONGEST_STOP_S)
    try:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for pool in pools:
            announce_stop(pool, 0.0)


def announce_stop(pool: ServerProcess, seconds: float) -> None:
    """Tell a prefill server with ``--cdsp`` for how long its controller may stand still from now.

    Raises:
        requests.RequestException: it does not take it.
    """
    url = urllib.parse.urljoin(pool.command.health_url, "/cdsp/announce_stop")
    requests.post(url, json={"seconds": seconds}, timeout=60).raise_for_status()


def _benchmark(arguments: list[str], log: str) -> tuple[float, float]:
    """In the client's process: the benchmark's main function with these arguments."""
    from sglang.benchmark.serving import cli_main

    sys.argv = [BENCHMARK, *arguments]
    start, cpu = time.monotonic(), time.process_time()
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        cli_main()
    return time.process_time() - cpu, time.monotonic() - start


def _cpu_seconds(roles: Mapping[str, list[int]]) -> dict[str, float]:
    spent = {}
    for role, pids in roles.items():
        times = [psutil.Process(pid).cpu_times() for pid in pids]
        spent[role] = sum(t.user + t.system for t in times)
    machine = psutil.cpu_times()
    spent["all"] = sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice
    return spent
