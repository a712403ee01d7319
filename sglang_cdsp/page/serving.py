"""Serves the page at ``/cdsp`` and its files, to everybody: there is nothing of the pool in them.

What the page fetches is behind SGLang's keys (``routes``). SGLang's middleware for keys knows no
open route, so the page stands in front of all middleware, and answers its own paths only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PATH = "/cdsp"
FILES = f"{PATH}/page"
INDEX = "index.html"
TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""By ending; other files, such as licences, are not served."""

HEADERS: Mapping[str, str] = {
    # Nothing from anywhere else, no code and no style inside the page, and in nobody's frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept, but asked for again: another release has other files under the same names.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page.

    Attributes:
        content: its bytes.
        kind: media type.
        tag: changes with the content.
    """

    content: bytes
    kind: str
    tag: str

    @classmethod
    def read(cls, file: Path) -> Asset:
        """Read a file of the package."""
        content = file.read_bytes()
        tag = hashlib.sha256(content).hexdigest()[:16]
        return cls(content, TYPES[file.suffix], f'"{tag}"')


def assets() -> dict[str, Asset]:
    """The page's files by path on the server."""
    folder = Path(__file__).parent / "assets"
    found = {
        f"{FILES}/{file.relative_to(folder).as_posix()}": Asset.read(file)
        for file in folder.rglob("*")
        if file.suffix in TYPES
    }
    found[PATH] = found.pop(f"{FILES}/{INDEX}")
    return found


class Page:
    """Answers requests for the page's files, and hands all others on."""

    def __init__(self, app: App) -> None:
        """Stand before ``app``, an ASGI application."""
        self._app = app
        self._assets = assets()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _path(scope)
        if path == f"{PATH}/":  # the page's links are relative to where it stands
            await _send(send, 307, {"Location": f"..{PATH}"})
            return
        asset = self._assets.get(path)
        if asset is None:
            await self._app(scope, receive, send)
            return
        known = asset.tag.encode() in dict(scope["headers"]).get(b"if-none-match", b"")
        headers = {**HEADERS, "ETag": asset.tag, "Content-Type": asset.kind}
        if not known:
            headers["Content-Length"] = str(len(asset.content))
        body = b"" if known or scope["method"] == "HEAD" else asset.content
        await _send(send, 304 if known else 200, headers, body)


def _path(scope: Scope) -> str:
    """What is asked for, below a proxy's prefix; "" for what the page does not answer."""
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
        return ""
    return str(scope["path"]).removeprefix(str(scope.get("root_path") or ""))


async def _send(send: Send, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
    lines = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


def install(app: FastAPI) -> None:
    """Put the page in front of all that an application has, and of what it gets before it starts.

    Starlette puts an application's middleware together at the first request; what is added last
    stands foremost, and SGLang adds its own after the plugin was loaded.
    """
    stock = app.build_middleware_stack
    app.build_middleware_stack = lambda: Page(stock())  # type: ignore[method-assign]
