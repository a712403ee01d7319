"""The examples, run as they are against the session's servers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_cdsp.testing.stack import RunningStack

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, servers: RunningStack, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run an example against the router."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--url", servers.url, *flags],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_streamed_prompts_tell_their_first_tokens(servers: RunningStack) -> None:
    done = run("stream_ttft.py", servers)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == [20_000, 400, 400, 400, 400]
    assert all("first token after" in line for line in lines)


def test_the_frontend_language_gets_an_answer_to_each_question(servers: RunningStack) -> None:
    done = run("ask_document.py", servers, "--characters", "8000", "--tokens", "4")
    assert done.returncode == 0, done.stderr
    answers = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    assert len(answers) == 3


def test_a_forced_plan_is_followed_and_a_wrong_one_refused(servers: RunningStack) -> None:
    done = run("forced_plan.py", servers, "--plan", "[[512, [1]], [300, [1, 2]]]")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("812 tokens prefilled as [[512, [1]], [300, [1, 2]]]")
    wrong = run("forced_plan.py", servers, "--plan", "[[512, [1]], [300, [2]]]")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("refused with ")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_gets_answers_through_a_router(servers: RunningStack) -> None:
    done = subprocess.run(
        [str(EXAMPLES / "curl.sh"), servers.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("data: ") >= 5, "four tokens and the end"
    assert '"output_token_logprobs"' in done.stdout
