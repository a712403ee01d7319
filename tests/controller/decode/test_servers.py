"""What a pool knows of its decode servers, and what it refuses for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sglang_cdsp.controller.decode.servers import (
    FIRST_CONTACT_S,
    INPUT_MARGIN,
    SURELY_HELD_TOKENS,
    DecodeRank,
    DecodeServers,
)

SMALL, LARGE = DecodeRank(0, "a", 1, 33), DecodeRank(0, "b", 1, 65)
SILENT = DecodeRank(0, "c", 1, None)


@pytest.fixture
def servers() -> DecodeServers:
    return DecodeServers(page_size=16, reserved_tokens=100, timeout_s=300.0)


def test_nothing_is_refused_before_anything_is_known(servers: DecodeServers) -> None:
    assert (servers.longest_prompt, servers.refusal(10**9)) == (None, "")


def test_the_largest_server_decides(servers: DecodeServers) -> None:
    servers.register(SMALL)
    assert servers.longest_prompt == 32 * 16 - 100
    servers.register(LARGE)
    assert servers.longest_prompt == 64 * 16 - 100
    assert servers.refusal(924) == ""
    refusal = servers.refusal(925)
    for part in ("925", "924", "1024", "--max-total-tokens", "--num-reserved-decode-tokens"):
        assert part in refusal


def test_who_does_not_say_how_much_it_holds_may_hold_anything(servers: DecodeServers) -> None:
    servers.register(SMALL)
    servers.register(SILENT)
    assert servers.longest_prompt is None
    servers.connected("c", 1, alive=False)
    assert servers.longest_prompt == 412


def test_a_server_that_is_gone_does_not_count_until_it_is_back(servers: DecodeServers) -> None:
    servers.register(SMALL)
    servers.register(LARGE)
    servers.connected("b", 1, alive=False)
    assert servers.ranks == (SMALL,)
    assert servers.longest_prompt == 412
    servers.connected("b", 1, alive=True)
    assert servers.longest_prompt == 64 * 16 - 100
    servers.connected("a", 1, alive=False)
    servers.connected("b", 1, alive=False)
    assert servers.longest_prompt is None
    restarted = replace(SMALL, port=2, pages=17)
    servers.register(restarted)
    assert servers.longest_prompt == 156


def test_the_command_line_has_the_last_word(servers: DecodeServers) -> None:
    servers.register(LARGE)
    stated = replace(servers, stated_tokens=300)
    assert stated.longest_prompt == 200
    assert "at most 200" in stated.refusal(201)


def test_stocks_own_margin_is_kept_where_nothing_is_reserved(servers: DecodeServers) -> None:
    assert replace(servers, reserved_tokens=0, stated_tokens=64).longest_prompt == 64 - INPUT_MARGIN


def test_patience_until_the_first_contact_is_short(servers: DecodeServers) -> None:
    assert servers.patience_s(SURELY_HELD_TOKENS) == 300.0
    assert servers.patience_s(SURELY_HELD_TOKENS + 1) == FIRST_CONTACT_S
    told = servers.overdue(7, 2000)
    for part in ("room 7", "2100", "--cdsp-decode-max-total-tokens"):
        assert part in told
    stated = replace(servers, stated_tokens=4096)
    servers.register(SILENT)
    servers.connected("c", 1, alive=False)
    for known in (servers, stated):
        assert known.patience_s(2000) == 300.0
        assert "send the request to a decode server too" in known.overdue(7, 2000)
