"""What clients of the mini router see: it stands between two servers that answer by script."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import orjson
from aiohttp import web
from sglang_router import mini_lb

HOST = "127.0.0.1"
PATIENCE_S = 2.0
LATER_S = 0.1

Script = dict[str, Any]
"""``status`` and ``body`` of an answer or ``events`` of a stream; ``after_s``; ``never``."""


def error(code: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "code": code}}


def answer(status: int, body: Any, after_s: float = 0) -> Script:
    return {"status": status, "body": body, "after_s": after_s}


def stream(*events: Any, after_s: float = 0) -> Script:
    return {"events": events, "after_s": after_s}


def end(code: int, message: str, **more: Any) -> dict[str, Any]:
    """An event of /generate that ends a request with an error."""
    reason = {"type": "abort", "message": message, "status_code": code}
    return {"text": "", "meta_info": {"finish_reason": reason}, **more}


def token(text: str, prompt: list[str], **more: Any) -> dict[str, Any]:
    """An answer or event of /generate with log-probabilities of ``prompt``."""
    scores = [[-1.0, place, word] for place, word in enumerate(prompt)]
    return {"text": text, "meta_info": {"input_token_logprobs": scores}, **more}


NEVER: Script = {"never": True}
WRONG = error(400, "n=2")
FULL = {"detail": "the queue is full"}
FAILED = error(500, "Decode transfer failed")
TEXT = {"text": "one"}
PAIR = ([token("", ["a", "b"]), token("", ["c"])], [token("x", []), token("y", [])])

# By name: fields of the request, prefill's script and decode's.
CASES: dict[str, tuple[dict[str, Any], Script, Script]] = {
    "refused": ({}, answer(400, WRONG), NEVER),
    "refused after decode failed": ({}, answer(400, WRONG, LATER_S), answer(500, FAILED)),
    "full": ({}, answer(503, FULL), answer(500, FAILED)),
    "refused by decode": ({}, NEVER, answer(400, WRONG)),
    "decode fails": ({}, answer(200, TEXT), answer(500, FAILED)),
    "both fail": ({}, answer(500, error(500, "Prefill failed")), answer(500, FAILED)),
    "served": ({}, answer(200, {"text": ""}), answer(200, TEXT, LATER_S)),
    "stream refused": ({"stream": True}, stream(end(400, "n=2")), stream(end(500, "failed"))),
    "stream refused later": (
        {"stream": True},
        stream(end(400, "n=2"), after_s=LATER_S),
        stream(end(500, "failed")),
    ),
    "stream with an error": ({"stream": True}, stream(WRONG), stream(FAILED)),
    "stream refused at once": ({"stream": True}, answer(400, WRONG), NEVER),
    "stream of scores refused": (
        {"stream": True, "return_logprob": True},
        stream(end(400, "n=2")),
        stream(end(500, "failed")),
    ),
    "one of a batch": (
        {"stream": True, "text": ["a", "b"]},
        stream({"text": "", "index": 0}, end(400, "too long", index=1)),
        stream(end(500, "failed", index=1), {"text": "one", "index": 0}),
    ),
    "stream fails at decode": (
        {"stream": True},
        stream({"text": "", "meta_info": {"finish_reason": {"type": "length"}}}),
        stream({"text": "one"}, end(500, "failed")),
    ),
    "stream served": ({"stream": True}, stream({"text": ""}), stream({"text": "one"}, {"a": 1})),
    "scores": (
        {"return_logprob": True},
        answer(200, token("", ["a", "b"])),
        answer(200, token("x", [])),
    ),
    "scores of a batch": (
        {"return_logprob": True, "text": ["a", "b"]},
        answer(200, PAIR[0]),
        answer(200, PAIR[1]),
    ),
    "stream of scores": (
        {"return_logprob": True, "stream": True},
        stream(token("", ["a", "b"])),
        stream(token("x", []), token("xy", [])),
    ),
    "stream of scores of a batch": (
        {"return_logprob": True, "stream": True, "text": ["a", "b"]},
        stream(token("", ["a", "b"], index=0), token("", ["c"], index=1)),
        stream(token("y", [], index=1), token("x", [], index=0)),
    ),
}


def run() -> dict[str, Any]:
    """By case: status and body, or the events; "waits" where no answer comes."""
    return asyncio.run(_all())


async def _all() -> dict[str, Any]:
    async with _server(1) as prefill, _server(2) as decode:
        mini_lb.lb = mini_lb.MiniLoadBalancer(_options(prefill, decode))
        return {name: await _seen(name) for name in CASES}


async def _seen(case: str) -> Any:
    fields = {"text": "a", **CASES[case][0], "case": case}
    try:
        return await asyncio.wait_for(_ask(fields), PATIENCE_S)
    except TimeoutError:
        return "waits"
    except Exception as failure:
        return f"breaks: {type(failure).__name__}"


async def _ask(fields: dict[str, Any]) -> Any:
    response = await mini_lb.handle_generate_request(fields)
    if not fields.get("stream"):
        return [response.status_code, orjson.loads(response.body)]
    said = b"".join([chunk async for chunk in response.body_iterator])
    data = [line.removeprefix(b"data: ") for line in said.splitlines() if line]
    assert data.pop() == b"[DONE]"
    return [orjson.loads(event) for event in data]


@asynccontextmanager
async def _server(place: int) -> AsyncIterator[str]:
    """A server that answers by the script at ``place`` of a case; yields its URL."""

    async def generate(request: web.Request) -> web.StreamResponse:
        script = CASES[(await request.json())["case"]][place]
        if script.get("never"):
            await asyncio.sleep(10 * PATIENCE_S)
        await asyncio.sleep(0 if "events" in script else script.get("after_s", 0))
        if "events" not in script:
            return web.json_response(script["body"], status=script["status"])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(script["after_s"])
        for event in (*map(orjson.dumps, script["events"]), b"[DONE]"):
            await response.write(b"data: " + event + b"\n\n")
        return response

    app = web.Application()
    app.router.add_post("/generate", generate)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    try:
        yield f"http://{HOST}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _options(prefill: str, decode: str) -> Any:
    return SimpleNamespace(
        host=HOST,
        port=0,
        request_timeout_secs=60,
        prefill_urls=[(prefill, 1)],
        decode_urls=[decode],
        otlp_traces_endpoint="",
        enable_trace=False,
        policy="random",
        pd_disaggregation=True,
    )
