"""Reports about an instance: that it is up, what it can hold, what it answers."""

from __future__ import annotations

from sglang_cdsp.protocol.reporting import (
    Report,
)
from sglang_cdsp.protocol.values import CacheChange


class Hello(Report, frozen=True, kw_only=True):
    """A rank is up. Sizes are in tokens.

    Attributes:
        invitations: by instance, how the same rank of it reaches this one.
        device: what the rank computes on, by the name that the device gives itself.
        dtype: of weights and activations.
        max_shard_tokens: how many tokens a forward may have here, None where nothing limits it.
        links: the kind of its links to other instances.
        kv_token_bytes: KV of a token on this rank's links, all layers; 0 where nobody asks.
    """

    invitations: dict[int, bytes]
    kv_capacity: int
    page_size: int
    max_input_tokens: int
    vocab_size: int
    device: str = ""
    dtype: str = ""
    layers: int
    kv_cache_dtype: str
    max_shard_tokens: int | None = None
    links: str = ""
    kv_token_bytes: int = 0


class Invitation(Report, frozen=True, kw_only=True):
    """How the same rank of a seat's next life reaches this one.

    Attributes:
        seat, life: the instance that is invited, and which life of it.
        invitation: what that process needs to join; empty where there is an ``error``.
    """

    seat: int
    life: int
    invitation: bytes
    error: str = ""


class SlotsTaken(Report, frozen=True, kw_only=True):
    """What SGLang's own requests take of the instance.

    Attributes:
        tokens: KV slots that they hold.
        step_s: what one of their decode steps takes, seconds; None before the first.
    """

    tokens: int
    step_s: float | None = None


class CacheChanged(Report, frozen=True, kw_only=True):
    """The instance's prefix cache holds other pages, by what happened, in order."""

    changes: list[CacheChange]


class GrammarRefused(Report, frozen=True, kw_only=True):
    """The grammar of request ``rid`` cannot be compiled."""

    rid: str
    error: str


class Answered(Report, frozen=True, kw_only=True):
    """The instance answers a question of SGLang's to all of them; see ``protocol/answers.py``.

    Attributes:
        kind: the name of the answer's type.
        payload: the answer, as SGLang sends it to the tokenizer manager.
        failure: "" or what it says has failed.
    """

    kind: str
    payload: bytes
    failure: str = ""
