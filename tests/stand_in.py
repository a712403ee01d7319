"""An HTTP server that stands in for SGLang's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class QuietHandler(BaseHTTPRequestHandler):
    """A handler that prints nothing; tests add what it answers."""

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@contextmanager
def answering(handler: type[QuietHandler]) -> Iterator[str]:
    """A server with that handler, each request in a thread of its own; its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
