"""The decode servers that have made contact, and the longest prompt that one of them takes.

Stock decode refuses a prompt over its KV cache without a word to prefill. One that its cache could
just hold, but not together with what it keeps free for output, is worse: it heads decode's queue
for ever and nobody behind it is served (SGLang 0.5.21, ``DecodePreallocQueue``). So a pool has to
know decode's limit and refuse such prompts itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sglang_cdsp.controller.decode.rooms import RoomMessage

# What SGLang's own prompt limit leaves of the KV cache (``TpModelWorker.get_worker_info``).
INPUT_MARGIN = 7
# How long a prompt waits while no decode server has ever made contact. Decode registers as soon as
# it accepts its first request, so silence means that it has not got, or has refused it.
FIRST_CONTACT_S = 4.0
# Every decode server holds a prompt of so many tokens: it waits as long as stock's would.
SURELY_HELD_TOKENS = 1024
# How long stock decode waits for an acknowledgement before it uses an aborted room's pages anyway.
RELEASE_S = 30.0


@dataclass(frozen=True)
class DecodeRank:
    """A rank of a decode server, as it registered.

    Attributes:
        tp_rank: the prefill rank that it registered with.
        host, port: where it listens.
        pages: pages of its KV buffers, the padding page included; None if it does not say.
        agent: name of its transfer agent, which each start of a server chooses anew over NIXL; two
            ranks that differ in nothing else are the same place.
        keeps_more: it keeps more of a request than KV pages, such as windows in a pool of their
            own. The pool sends nothing else.
    """

    tp_rank: int
    host: str
    port: int
    pages: int | None
    agent: str = field(default="", compare=False)
    keeps_more: bool = False


@dataclass
class DecodeServers:
    """Decode ranks by how they can be reached, and what they hold.

    Attributes:
        page_size: tokens a page; SGLang wants it equal on both sides.
        reserved_tokens: what decode keeps free for a request's output when it takes it in; a flag
            of decode's, of which the pool reads its own (``--num-reserved-decode-tokens``).
        timeout_s: how long decode has to name a request's pages.
        stated_tokens: KV tokens that a decode server holds, from the command line; None to
            learn them from registrations.
        release_s: how long decode keeps an aborted room's pages without an acknowledgement; a
            variable of decode's, of which the pool reads its own.
    """

    page_size: int
    reserved_tokens: int
    timeout_s: float
    stated_tokens: int | None = None
    release_s: float = RELEASE_S
    _ranks: dict[tuple[int, str, int], DecodeRank] = field(default_factory=dict)
    _gone: set[tuple[str, int]] = field(default_factory=set)

    def register(self, rank: DecodeRank) -> DecodeRank | None:
        """A decode rank made contact.

        Returns:
            Another server's rank that had the address before; None if there was none.
        """
        place = (rank.tp_rank, rank.host, rank.port)
        former = self._ranks.get(place)
        self._ranks[place] = rank
        self._gone.discard((rank.host, rank.port))
        return former if former is not None and former.agent != rank.agent else None

    def connected(self, host: str, port: int, *, alive: bool) -> None:
        """A decode rank can be reached no longer, or again."""
        if alive:
            self._gone.discard((host, port))
        else:
            self._gone.add((host, port))

    @property
    def ranks(self) -> tuple[DecodeRank, ...]:
        """The ranks that can be reached."""
        ranks = self._ranks.values()
        return tuple(rank for rank in ranks if (rank.host, rank.port) not in self._gone)

    @property
    def capacity_tokens(self) -> int | None:
        """KV tokens of the largest decode server; None while that is not known."""
        if self.stated_tokens is not None:
            return self.stated_tokens
        pages = [rank.pages for rank in self.ranks]
        known = [count - 1 for count in pages if count is not None]
        # Who does not say how much it holds may hold anything.
        return max(known) * self.page_size if known and len(known) == len(pages) else None

    @property
    def longest_prompt(self) -> int | None:
        """Tokens of the longest prompt that decode takes; None while that is not known."""
        capacity = self.capacity_tokens
        return None if capacity is None else capacity - max(self.reserved_tokens, INPUT_MARGIN)

    def snapshot(self) -> dict[str, Any]:
        """For status pages, JSON-ready."""
        return {"ranks": len(self.ranks), "longest_prompt": self.longest_prompt}

    def refusal(self, tokens: int) -> str:
        """Why no decode server takes a prompt of ``tokens``; "" if one does or may."""
        longest = self.longest_prompt
        if longest is None or tokens <= longest:
            return ""
        return (
            f"the prompt has {tokens} tokens, decode takes at most {longest}: its KV cache holds "
            f"{self.capacity_tokens}, of which it keeps {self.reserved_tokens} free for output; "
            "shorten the prompt, or start decode with a larger --max-total-tokens or "
            "--mem-fraction-static, or both servers with fewer --num-reserved-decode-tokens"
        )

    def unfit(self, named: Iterable[RoomMessage]) -> str:
        """Why the pool cannot write to those who named a room's pages; "" if it can."""
        for message in named:
            rank = self._ranks.get((message.tp_rank, message.host, message.port))
            if rank is not None and rank.keeps_more:
                return (
                    f"the decode server at {rank.host}:{rank.port} keeps more of a request than "
                    "the KV pages that this pool writes, such as windows in a pool of their own: "
                    "start it with the flags of this server, --disable-hybrid-swa-memory among them"
                )
        return ""

    def patience_s(self, tokens: int) -> float:
        """How long a prompt of ``tokens`` waits for decode to name its pages."""
        if self._ranks or self.stated_tokens is not None or tokens <= SURELY_HELD_TOKENS:
            return self.timeout_s
        return min(self.timeout_s, FIRST_CONTACT_S)

    def overdue(self, room: int | None, tokens: int) -> str:
        """What a prompt of ``tokens`` is told that waited longer than that."""
        patience_s = self.patience_s(tokens)
        silence = f"no decode server named pages for bootstrap room {room} in {patience_s:g} s"
        if patience_s == self.timeout_s:
            return f"{silence}; send the request to a decode server too"
        return (
            f"{silence}, and none has ever made contact: none is running or got the request, or "
            f"it refused the prompt ({tokens} tokens need a decode --max-total-tokens of "
            f"{tokens + max(self.reserved_tokens, INPUT_MARGIN)}); send the request to a decode "
            "server too, and to wait longer for its first contact give its size to this server "
            "with --cdsp-decode-max-total-tokens"
        )
