"""Who gets the page: everybody, and nothing else of the server with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sglang.srt.utils.auth import add_api_key_middleware

from sglang_cdsp.page.serving import FILES, PATH, assets, install

KEY = "the key"


def client_of(*, key: str | None = KEY, root: str = "") -> TestClient:
    """A server with a key, which SGLang puts in place after the page."""
    app = FastAPI(root_path=root)

    async def secret() -> dict[str, int]:
        return {"answer": 42}

    app.add_api_route("/secret", secret, methods=["GET"])
    app.add_api_route("/cdsp/status", secret, methods=["GET"])
    app.add_api_route(PATH, secret, methods=["POST"])
    install(app)
    if key is not None:
        add_api_key_middleware(app, api_key=key, admin_api_key=None)
    return TestClient(app, follow_redirects=False)


@pytest.mark.parametrize("key", [None, KEY])
def test_the_page_and_its_files_are_open(key: str | None) -> None:
    client = client_of(key=key)
    page = client.get(PATH)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for path in assets():
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_else_is_open() -> None:
    client = client_of()
    for path in ("/secret", "/cdsp/status", "/cdsp/page", "/cdsp/page/", "/cdspx", "/cdsp/page/no"):
        assert client.get(path).status_code == 401, path
    for path in (f"{FILES}/../../secret", f"{FILES}/%2e%2e/%2e%2e/secret", f"{FILES}//main.js"):
        assert client.get(path).status_code in (401, 404), path
    assert client.post(PATH).status_code == 401
    headers = {"Authorization": f"Bearer {KEY}"}
    assert client.get("/secret", headers=headers).json() == {"answer": 42}
    assert client.post(PATH, headers=headers).json() == {"answer": 42}


def test_the_page_may_ask_its_own_server_only() -> None:
    policy = client_of().get(PATH).headers["content-security-policy"]
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert allowed["default-src"] == "'none'"
    assert {source for name, source in allowed.items() if name != "default-src"} == {
        "'self'",
        "'none'",
    }
    assert allowed["frame-ancestors"] == "'none'"


def test_a_browser_that_has_a_file_gets_it_once() -> None:
    client = client_of()
    first = client.get(PATH)
    again = client.get(PATH, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(PATH, headers={"If-None-Match": '"another"'})
    assert other.content == first.content


def test_heads_have_no_body() -> None:
    client = client_of()
    head = client.head(PATH)
    assert head.content == b""
    assert int(head.headers["content-length"]) == len(client.get(PATH).content)


def test_a_slash_too_many_leads_to_the_page() -> None:
    answer = client_of().get(f"{PATH}/")
    assert (answer.status_code, answer.headers["location"]) == (307, "../cdsp")


def test_below_a_prefix_of_a_proxy() -> None:
    client = client_of(root="/gpu1")
    assert client.get(f"/gpu1{PATH}").status_code == 200
    assert client.get("/gpu1/secret").status_code == 401


def test_what_is_no_http_goes_on() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    from sglang_cdsp.page.serving import Page

    page: Callable[..., Any] = Page(app)
    for scope in ({"type": "lifespan"}, {"type": "websocket", "path": PATH}):
        with pytest.raises(StopIteration):
            page(scope, None, None).send(None)
    assert seen == ["lifespan", "websocket"]
