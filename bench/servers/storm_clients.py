"""The clients of a storm: each sends a request, and says how it ended."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import dataclass

import requests

from bench.servers.storm_forms import DISAGGREGATED, StormForm
from bench.servers.storm_jobs import Job, Prompt, body_of
from sglang_cdsp.testing.stack import RunningStack


@dataclass(frozen=True)
class End:
    """How a request ended.

    Attributes:
        how: "answered", "refused", "left" or "error".
        tokens: of each prompt, if answered.
        seconds: from the cause of an end without an answer; 0 for other ends.
        words: of an error.
        status: HTTP status of an answer or of an error, 0 where there was none.
    """

    how: str
    tokens: tuple[Prompt, ...] = ()
    seconds: float = 0.0
    words: str = ""
    status: int = 0


def ask(
    stack: RunningStack, job: Job, url: str | None = None, form: StormForm = DISAGGREGATED
) -> End:
    """Send a request, through the router unless ``url`` is given, and wait for its end."""
    caused_s = [time.monotonic()]
    timer = None
    if job.leave_s is not None and not job.disconnect:
        timer = threading.Timer(job.leave_s, abort, (stack, job.rid, caused_s, form))
        timer.start()
    try:
        if job.disconnect:
            return leave(stack, job)
        response = requests.post(f"{url or stack.url}/generate", json=body_of(job), timeout=120)
        end = read(response, job)
    except requests.RequestException as error:
        end = End("error", words=repr(error))
    finally:
        if timer is not None:
            timer.cancel()
    if end.how == "answered":
        return end
    how = "refused" if job.bad else "left" if job.leave_s is not None else "error"
    return End(how, (), time.monotonic() - caused_s[0], end.words, end.status)


def read(response: requests.Response, job: Job) -> End:
    """Read a whole answer."""
    if response.status_code != 200:
        return End("error", words=response.text, status=response.status_code)
    if job.stream:
        events = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
        answers = {answer.get("index", 0): answer for answer in map(json.loads, events)}
    else:
        whole = response.json()
        answers = dict(enumerate(whole if isinstance(whole, list) else [whole]))
    found = []
    for index in range(len(job.prompts)):
        answer = answers.get(index, {})
        reason = (answer.get("meta_info") or {}).get("finish_reason") or {}
        if reason.get("type") != "length":
            words = reason.get("message") or json.dumps(answer)[:300]
            return End("error", words=words, status=response.status_code)
        found.append(tuple(answer["output_ids"]))
    return End("answered", tuple(found), status=response.status_code)


def leave(stack: RunningStack, job: Job) -> End:
    """Read events until it is time to leave, then close the connection."""
    assert job.leave_s is not None
    until_s = time.monotonic() + job.leave_s
    patience = (30.0, max(job.leave_s, 0.01))
    try:
        with requests.post(
            f"{stack.url}/generate", json=body_of(job), stream=True, timeout=patience
        ) as response:
            for _ in response.iter_lines():
                if time.monotonic() > until_s:
                    break
    except requests.RequestException:
        pass  # nothing came for so long: that is when this client leaves
    return End("left")


def abort(stack: RunningStack, rid: str, caused_s: list[float], form: StormForm) -> None:
    """``/abort_request`` on every server that has a part in the request; notes when."""
    for name in form.told:
        with contextlib.suppress(requests.RequestException):  # a server that is gone has it no more
            requests.post(f"{stack.urls[name]}/abort_request", json={"rid": rid}, timeout=30)
    caused_s[0] = time.monotonic()
