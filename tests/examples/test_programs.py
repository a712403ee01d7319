"""The examples can be started; ``tests/serving/test_examples.py`` runs them against servers."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from sglang_cdsp.planner import PolicyOptions, PoolView, PromptView, builtin_model, make_policy
from tests.cli.calls import FEW, call, simulated

EXAMPLES = Path(__file__).parents[2] / "examples"
POLICY = EXAMPLES / "own_policy.py"
PROGRAMS = sorted(set(EXAMPLES.glob("*.py")) - {POLICY})
LAUNCH = EXAMPLES / "launch_pool.sh"
CURL = EXAMPLES / "curl.sh"
with_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")


def test_every_example_is_in_the_table() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert len(PROGRAMS) >= 3
    for example in (*PROGRAMS, POLICY, LAUNCH, CURL):
        assert f"[{example.name}]({example.name})" in page


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_program_tells_its_flags(program: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(program), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--url" in done.stdout


def test_programs_need_only_what_sglang_brings() -> None:
    allowed = {"sglang", "openai", "requests", *sys.stdlib_module_names}
    for program in PROGRAMS:
        tree = ast.parse(program.read_text(encoding="utf-8"))
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert {name.partition(".")[0] for name in names} <= allowed, program.name


def test_the_launch_script_is_whole_and_tells_its_usage() -> None:
    subprocess.run(["sh", "-n", str(LAUNCH)], check=True)
    done = subprocess.run([str(LAUNCH), "--help"], capture_output=True, text=True, check=True)
    assert "usage: launch_pool.sh MODEL" in done.stdout
    assert subprocess.run([str(LAUNCH)], capture_output=True, check=False).returncode == 2


def test_the_launch_script_starts_prefill_decode_and_router(tmp_path: Path) -> None:
    """A stand-in for python writes down what it is asked to run."""
    log = tmp_path / "log"
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    stand_in.chmod(0o755)
    subprocess.run(
        [str(LAUNCH), "a/model", "--cdsp-policy", "cdsp"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "INSTANCES": "3", "TP_SIZE": "2"},
        start_new_session=True,
        capture_output=True,
        check=False,
    )
    decode, prefill, router = sorted(log.read_text().splitlines(), key=kind)
    assert "--cdsp --dp-size 3 --tp-size 2" in prefill
    assert prefill.endswith("--cdsp-policy cdsp")
    assert "--base-gpu-id 6" in decode
    assert "--cdsp" not in decode
    port = prefill.split("--disaggregation-bootstrap-port ")[1].split()[0]
    assert f"--prefill http://127.0.0.1:30001 {port} " in router


class Told(BaseHTTPRequestHandler):
    """Answers everything with what it was told, in JSON."""

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        told = {"key": self.headers["Authorization"], "body": json.loads(body or "null")}
        self.send_response(404 if self.path == "/cdsp/status" else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"path": self.path, **told}).encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@with_curl
def test_the_curl_script_sends_whole_json_and_the_key() -> None:
    prompt = 'a "quoted" back\\slash\nand a line'
    with HTTPServer(("127.0.0.1", 0), Told) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [str(CURL), f"http://127.0.0.1:{server.server_port}"],
            env={"PATH": "/usr/bin:/bin", "PROMPT": prompt, "API_KEY": "a key"},
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    paths = [each["path"] for each in told]
    assert paths == [
        *("/v1/models", "/v1/completions", "/v1/completions", "/generate", "/cdsp/status"),
    ]
    assert {each["key"] for each in told} == {"Bearer a key"}
    assert told[1]["body"]["prompt"] == prompt.replace("\n", " ") == told[3]["body"]["text"]
    assert told[2]["body"]["stream"] is True


@with_curl
def test_the_curl_script_fails_where_nobody_answers() -> None:
    done = subprocess.run([str(CURL), "http://127.0.0.1:1"], capture_output=True, check=False)
    assert done.returncode not in (0, 2)
    assert b"127.0.0.1" in done.stderr
    assert subprocess.run([str(CURL), "--what"], capture_output=True, check=False).returncode == 2


def test_the_own_policy_takes_the_smallest_group_in_time() -> None:
    policy = make_policy(f"{POLICY}:InTime", PolicyOptions(builtin_model(), (1, 2, 4, 8)))
    pool = PoolView((0.0,) * 8, None, 8)
    found = {}
    for tokens in (1_000, 40_000, 400_000):
        plan = policy.plan(PromptView("r", tokens), pool)
        assert plan is not None
        found[tokens] = (len(plan.instances), plan.ttft_s <= 2.0)
    assert found[1_000] == (1, True)
    assert found[40_000][0] in (2, 4)
    assert found[40_000][1]
    assert found[400_000] == (8, False), "none is in time, so the fastest"


def test_the_own_policy_in_the_simulator(capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{POLICY}:InTime"
    shown = simulated(capsys, "--policy", f"{name},single-chunk", *FEW)
    assert set(shown["policies"]) == {name, "single-chunk"}
    assert shown["policies"][name]["completed"] == 60
    status, out, _ = call(capsys, "plan", "--tokens", "20000", "--queue", "0*4", "--policy", name)
    assert status == 0
    assert f"policy {name}" in out


def kind(command: str) -> str:
    """ "decode", "prefill" or "router"."""
    words = command.split()
    if "sglang_router.launch_router" in words:
        return "router"
    return words[words.index("--disaggregation-mode") + 1]
