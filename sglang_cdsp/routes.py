"""``GET /cdsp/status`` and ``POST /cdsp/update`` on SGLang's own HTTP server.

SGLang's FastAPI application is a module attribute of the launching process, where the plugin is
loaded before the server starts: routes that are added to it inherit the server's TLS, and its
middleware reads their level of authorisation.
"""

from __future__ import annotations

from typing import Any

import msgspec
import zmq
import zmq.asyncio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from sglang_cdsp.control import guards
from sglang_cdsp.control.memory import Memory
from sglang_cdsp.protocol.admin import AdminReply, AdminRequest

ANSWER_WITHIN_MS = 5000


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


def add_routes(app: FastAPI, endpoint: str, key: str) -> None:
    """Add routes that talk to the controller at ``endpoint``, which wants ``key``.

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

    async def update(request: Request) -> JSONResponse:
        """Change the regulation at run time; answers with the new status."""
        try:
            body: Any = await request.json()
        except ValueError as error:
            return _error(400, f"the body is not JSON: {error}")
        return await answer(AdminRequest(key, {} if body is None else body))

    admin = auth_level(AuthLevel.ADMIN_OPTIONAL)
    app.add_api_route("/cdsp/status", admin(status), methods=["GET"])
    app.add_api_route("/cdsp/update", admin(update), methods=["POST"])


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status_code=status)


def install(endpoint: str, key: str, *, shares_weights: bool = False) -> None:
    """Add the routes to SGLang's application, and guards to its own; safe to call twice.

    Args:
        endpoint: where the controller answers.
        key: what it wants to hear.
        shares_weights: other servers use the weights of this one, too.
    """
    from sglang.srt.entrypoints.http_server import app, get_global_state

    def in_hand() -> int:
        return len(get_global_state().tokenizer_manager.rid_to_state)

    guards.install(app, Memory(in_hand, shares_weights=shares_weights))

    if not any(getattr(route, "path", "") == "/cdsp/status" for route in app.routes):
        add_routes(app, endpoint, key)
