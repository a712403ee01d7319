"""A server of the page over HTTP, whose pool does what a test says, in real time."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
import zmq
from fastapi import FastAPI
from sglang.srt.utils.auth import add_api_key_middleware

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.page.serving import install
from sglang_cdsp.planner.roles import parse_roles
from sglang_cdsp.protocol.admin import AdminServer
from sglang_cdsp.protocol.ports import free_ports
from sglang_cdsp.routes import add_routes
from tests.controller.cases import phase_is
from tests.controller.fake_pool import Chunks
from tests.controller.feed.watched import LAYERS, WatchedOneServer

SOCKET_KEY = "between the processes"


class Stage:
    """A pool that decodes itself, behind SGLang's middleware and our routes.

    Attributes:
        pool: what is shown.
        url: where.
    """

    def __init__(self, *, size: int, key: str | None) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.pool = WatchedOneServer(size=size, capacity=100_000)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        endpoint = f"ipc://@test-page-{uuid.uuid4().hex}"
        self._admin = AdminServer(
            self._context,
            endpoint,
            SOCKET_KEY,
            status=dict,
            update=lambda body: None,
            timeline=self._timeline,
        )
        app = FastAPI()
        add_routes(app, endpoint, SOCKET_KEY)
        install(app)
        if key is not None:
            add_api_key_middleware(app, api_key=key, admin_api_key=None)
        port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{port}"
        self._server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
        self._threads = [
            threading.Thread(target=target) for target in (self._server.run, self._serve)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def end(self) -> None:
        self._server.should_exit = True
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._admin.socket.close()
        self._context.term()

    def _serve(self) -> None:
        while not self._over.is_set():
            self._admin.socket.poll(20)
            with self._lock:
                self.pool.now_s = time.monotonic()
                self.pool.feed.tick(self.pool.now_s)
                self._admin.serve()

    def _timeline(self, since: int) -> dict[str, object]:
        return self.pool.feed.answer(since)

    # -- what happens ---------------------------------------------------------------------

    @contextmanager
    def now(self) -> Iterator[WatchedOneServer]:
        """The pool at this moment, to oneself."""
        with self._lock:
            self.pool.now_s = time.monotonic()
            yield self.pool

    def submit(self, rid: str, plan: Chunks) -> PoolRequest:
        """A request with a plan arrives."""
        with self.now() as pool:
            return pool.submit(sum(tokens for tokens, _ in plan), rid=rid, plan=plan)

    def runs(self, request: PoolRequest, chunk: int) -> None:
        """A chunk of it runs."""
        with self.now() as pool:
            pool.until(lambda: request.next_chunk == chunk and phase_is(request, Phase.RUNNING))

    def layer(self, request: PoolRequest, layer: int) -> None:
        """All members of its chunk have begun a layer."""
        assert 0 < layer <= LAYERS
        with self.now() as pool:
            for instance in range(len(pool.instances)):
                pool.begun[(instance, request.serial)] = layer

    def decodes(self, request: PoolRequest) -> None:
        """It has its first token, and home decodes it."""
        with self.now() as pool:
            pool.until(lambda: phase_is(request, Phase.DECODING))

    def turns(self, roles: str) -> None:
        """The instances get other roles."""
        with self.now() as pool:
            pool.lifecycle.on_roles(parse_roles(roles), "asked for")

    def leaves(self, request: PoolRequest) -> None:
        """It has been taken out of its home's batch, for another home."""
        with self.now() as pool:
            pool.until(lambda: request.travels)

    def arrives(self, request: PoolRequest, instance: int) -> None:
        """Another home goes on with it, and its last one has freed what it held."""
        with self.now() as pool:
            moves = pool.lifecycle._moves
            pool.until(lambda: request.home == instance and len(moves) == 0)

    def ends(self, request: PoolRequest) -> None:
        """It is over."""
        with self.now() as pool:
            pool.until(lambda: phase_is(request, Phase.ENDED))


@contextmanager
def stage(*, size: int = 4, key: str | None = None) -> Iterator[Stage]:
    """A running server of the page."""
    made = Stage(size=size, key=key)
    made.start()
    try:
        yield made
    finally:
        made.end()
