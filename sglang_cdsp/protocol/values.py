"""What several messages carry: output of a request, log-probabilities, changes of a cache."""

from __future__ import annotations

import msgspec

DEVICE = "GPU"
"""SGLang's name of device memory among the places where pages lie."""


class CacheChange(msgspec.Struct, frozen=True):
    """Something that happened to an instance's prefix cache.

    Attributes:
        kind: ``"stored"``, ``"removed"`` or ``"cleared"``.
        pages: names of pages, int64 in this machine's byte order; see ``prefixes/hashes.py``.
        medium: where they lie, as SGLang's ``StorageMedium`` says it; what is cleared lay anywhere.
        tokens: of stored pages, in order, int64; only where the pool publishes KV events, as the
            rest of what SGLang says of them:
        parent: the page before the first one, None for none.
        salt: of their namespace.
        session: whose request stored them.
    """

    kind: str
    pages: bytes = b""
    medium: str = DEVICE
    tokens: bytes = b""
    parent: int | None = None
    salt: str | None = None
    session: str | None = None


class LogprobSpec(msgspec.Struct, frozen=True):
    """Prompt log-probabilities that a request asks for.

    Attributes:
        start: first prompt position whose row is computed.
        top: how many of the best tokens per row, 0 for none.
        token_ids: tokens whose values are wanted per row, None for none.
    """

    start: int
    top: int
    token_ids: list[int] | None


class LogprobPart(msgspec.Struct, frozen=True):
    """Prompt log-probabilities of some rows of task ``seq``; lists are empty where not asked for.

    Attributes:
        positions: prompt positions of the rows, ascending.
        values: per row, the log-probability of the prompt's next token.
        top_values, top_ids: per row, the best tokens.
        chosen_values, chosen_ids: per row, the tokens that the request named.
    """

    seq: int
    positions: list[int]
    values: list[float]
    top_values: list[list[float]]
    top_ids: list[list[int]]
    chosen_values: list[list[float]]
    chosen_ids: list[list[int]]


class OutputState(msgspec.Struct, frozen=True, kw_only=True):
    """What a request that leaves its home is beside its prompt and its KV: its next one goes on.

    See ``engine/req_state.py``.

    Attributes:
        tokens: output token ids, the first one first.
        sent: how many of them have gone to the detokenizer, and so count as seen by the client.
        cached_tokens: prompt tokens that the prefix cache had, as the client is told.
        retractions: how often the request was retracted, as the client is told.
        logprobs: SGLang's record of its log-probabilities. Empty where it is lost with its
            instance: the client has those of the tokens that were sent.
    """

    tokens: list[int]
    sent: int
    cached_tokens: int = 0
    retractions: int = 0
    logprobs: bytes = b""


class StreamedPart(msgspec.Struct, frozen=True, kw_only=True):
    """What an output message says of one request.

    Attributes:
        rid: SGLang's id.
        tokens: output token ids that are new in it.
        ended: it is the request's last.
        cached_tokens, retractions: as in ``OutputState``.
    """

    rid: str
    tokens: list[int]
    ended: bool = False
    cached_tokens: int = 0
    retractions: int = 0
