"""Guards in front of SGLang's control endpoints: what cannot be done is a 400 that says so.

A guard stands inside a route, behind SGLang's middleware: whoever may not use an endpoint is told
that first. Where stock would answer with a bare 500 the guard passes the reason on.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from sglang_cdsp.control.memory import Memory
from sglang_cdsp.control.table import Effect, Endpoint, row_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

RELEASE, RESUME = "/release_memory_occupation", "/resume_memory_occupation"
SAYS_WHY = frozenset({"/start_profile", "/stop_profile", "/configure_logging"})
"""Endpoints at which an exception of stock's is the caller's mistake, told as a bare 500."""


def routes_of(app: FastAPI) -> Iterator[APIRoute]:
    """All routes of SGLang's application, those of its routers too."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            yield route
        router = getattr(route, "original_router", None)
        if router is not None:
            yield from (inner for inner in router.routes if isinstance(inner, APIRoute))


def install(app: FastAPI, memory: Memory) -> None:
    """Put guards into the routes of an application; safe to call twice."""
    for route in routes_of(app):
        row = row_of(route.path, route.methods or ())
        if row is None or isinstance(route.app, (Refusal, MemoryGuard, Words)):
            continue
        if row.effect is Effect.REFUSED:
            route.app = Refusal(row)
        elif row.path in (RELEASE, RESUME):
            route.app = MemoryGuard(route.app, memory, releases=row.path == RELEASE)
        elif row.path in SAYS_WHY:
            route.app = Words(route.app)


def _error(message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status_code=400)


class Refusal:
    """An endpoint that the pool does not have."""

    def __init__(self, row: Endpoint) -> None:
        self._message = f"{row.path} is not served with --cdsp: {row.pool}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _error(self._message)(scope, receive, send)


class Words:
    """An endpoint whose exceptions say what the caller did wrong."""

    def __init__(self, stock: App) -> None:
        self._stock = stock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._stock(scope, receive, send)
        except (RuntimeError, ValueError) as error:
            await _error(str(error))(scope, receive, send)


class MemoryGuard:
    """Release or resume of memory, each of which ends a stock server that it does not suit."""

    def __init__(self, stock: App, memory: Memory, *, releases: bool) -> None:
        self._stock = stock
        self._memory = memory
        self._releases = releases

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _whole_body(receive)
        tags = _tags(body)
        reason = self._memory.fault(tags, releases=self._releases)
        if reason:
            await _error(reason)(scope, receive, send)
            return
        # At once: whoever asks meanwhile for the same memory is refused.
        self._memory.note(tags, releases=self._releases)
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            await self._stock(scope, _Again(body, receive), noting)
        finally:
            if status >= 400:
                self._memory.note(tags, releases=not self._releases)


async def _whole_body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


class _Again:
    """Hands a body on that was read already, then what else comes."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def _tags(body: bytes) -> frozenset[str]:
    """The tags of a request; of one that stock will refuse, none."""
    try:
        tags = json.loads(body).get("tags")
        return frozenset(map(str, tags or ()))
    except (ValueError, AttributeError, TypeError):
        return frozenset()
