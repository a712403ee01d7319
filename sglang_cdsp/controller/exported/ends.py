"""Whose doing the end of a request was, in one word."""

from __future__ import annotations

from http import HTTPStatus

from sglang_cdsp.controller.request import PoolRequest


def cause_of(request: PoolRequest) -> str:
    """The cause of an ended request, one of those that ``definitions.ENDS`` has for its outcome."""
    outcome = request.outcome
    if outcome == "finished":
        return "none"
    if outcome == "aborted":
        return "decode" if request.cause == "decode" else "client"
    if request.cause == "request" or request.status == HTTPStatus.BAD_REQUEST:
        return "request"
    if request.lost:
        return "instance"
    return "capacity" if request.status == HTTPStatus.SERVICE_UNAVAILABLE else "server"
