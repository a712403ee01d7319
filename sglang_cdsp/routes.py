"""The pool's own routes on SGLang's HTTP server: ``/cdsp``, ``/cdsp/status`` and so on.

SGLang's FastAPI application is a module attribute of the launching process, where the plugin is
loaded before the server starts: routes that are added to it inherit the server's TLS, and its
middleware reads their level of authorisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from sglang_cdsp.control import guards
from sglang_cdsp.control.memory import Memory
from sglang_cdsp.page import serving
from sglang_cdsp.protocol.admin import AdminReply, AdminRequest

ANSWER_WITHIN_MS = 5000
MOST_DIGITS = 15
"""Of a version: it stays a whole number in every browser."""


async def ask(endpoint: str, request: AdminRequest) -> AdminReply:
    """Ask the pool controller.

    Raises:
        TimeoutError: it does not answer.
    """
    context = zmq.asyncio.Context.instance()
    with context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(endpoint)
        await socket.send(msgspec.msgpack.encode(request))
        if not await socket.poll(ANSWER_WITHIN_MS):
            raise TimeoutError("the pool controller does not answer; see the server's log")
        return msgspec.msgpack.decode(await socket.recv(), type=AdminReply)


def add_routes(
    app: FastAPI, endpoint: str, key: str, excuse: Callable[[float], None] = lambda seconds: None
) -> None:
    """Add routes that talk to the controller at ``endpoint``, which wants ``key``.

    Args:
        app: SGLang's application.
        endpoint, key: the controller's.
        excuse: lets the controller stand still for so many seconds; ``ValueError`` if it cannot.

    Clients need what SGLang's own admin routes ask of them: ``--admin-api-key`` if there is one,
    else ``--api-key`` if there is one. SGLang finds that level on a route of the application
    itself; behind ``include_router`` it would take the routes for open ones.
    """
    from sglang.srt.utils.auth import AuthLevel, auth_level

    async def answer(request: AdminRequest) -> JSONResponse:
        try:
            reply = await ask(endpoint, request)
        except TimeoutError as error:
            return _error(503, str(error))
        return _error(reply.status, reply.error) if reply.error else JSONResponse(reply.body)

    async def status() -> JSONResponse:
        """The pool, queue times, policy, latency model, improvement rate and its table."""
        return await answer(AdminRequest(key))

    async def timeline(since: str = "0") -> JSONResponse:
        """What the page shows: all that changed after version ``since``, see ``Feed.answer``."""
        if not (since.isascii() and since.isdigit() and len(since) <= MOST_DIGITS):
            return _error(400, "since is what the last answer had as its next: since=0 for all")
        return await answer(AdminRequest(key, since=int(since)))

    async def update(request: Request) -> JSONResponse:
        """Change the regulation at run time; answers with the new status."""
        try:
            body = await _json(request)
        except ValueError as error:
            return _error(400, str(error))
        return await answer(AdminRequest(key, {} if body is None else body))

    async def announce_stop(request: Request) -> JSONResponse:
        """Somebody will stop the controller's process and let it go on within ``seconds``."""
        try:
            seconds = _seconds(await _json(request))
            excuse(seconds)
        except ValueError as error:
            return _error(400, str(error))
        return JSONResponse({"seconds": seconds})

    admin = auth_level(AuthLevel.ADMIN_OPTIONAL)
    app.add_api_route("/cdsp/status", admin(status), methods=["GET"])
    app.add_api_route("/cdsp/timeline", admin(timeline), methods=["GET"])
    app.add_api_route("/cdsp/update", admin(update), methods=["POST"])
    app.add_api_route("/cdsp/announce_stop", admin(announce_stop), methods=["POST"])


async def _json(request: Request) -> Any:
    try:
        return await request.json()
    except ValueError as error:
        raise ValueError(f"the body is not JSON: {error}") from error


def _seconds(body: Any) -> float:
    """The number in ``{"seconds": 600}``."""
    seconds = body.get("seconds") if isinstance(body, dict) and len(body) == 1 else None
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise ValueError('the body says how long the stop may last: {"seconds": 600}')
    return float(seconds)


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status_code=status)


def install(
    endpoint: str, key: str, *, excuse: Callable[[float], None], shares_weights: bool = False
) -> None:
    """Add the routes to SGLang's application, and guards to its own; safe to call twice.

    Args:
        endpoint: where the controller answers.
        key: what it wants to hear.
        excuse: lets the controller stand still for so many seconds.
        shares_weights: other servers use the weights of this one, too.
    """
    from sglang.srt.entrypoints.http_server import app, get_global_state

    def in_hand() -> int:
        return len(get_global_state().tokenizer_manager.rid_to_state)

    guards.install(app, Memory(in_hand, shares_weights=shares_weights))

    if not any(getattr(route, "path", "") == "/cdsp/status" for route in app.routes):
        add_routes(app, endpoint, key, excuse)
        serving.install(app)
