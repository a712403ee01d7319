"""Orders and reports about cached prefixes that are copied from one cache to another."""

from __future__ import annotations

from sglang.srt.managers.io_struct import BaseReq

from sglang_cdsp.protocol.reporting import (
    Report,
)


class CopyInOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Take a prefix into this instance's cache, which ``source`` has in its own.

    What this instance has of it already does not travel.

    Attributes:
        seq: number of the copy, below zero: no task has it.
        tokens: the prefix's token ids as little-endian uint32 bytes, whole pages.
        salt: of its namespace, None for the common one.
        lane, serial: the buffers of the links that are promised to the copy, as in ``GoOrder``.
    """

    seq: int
    tokens: bytes
    salt: str | None
    source: int
    lane: int
    serial: int


class CopyOutOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Send a cached prefix to ``target``, from its token number ``first`` on.

    Attributes:
        seq, tokens, salt, lane, serial: as in ``CopyInOrder``.
        first: whole pages; the target has what is before it.
    """

    seq: int
    tokens: bytes
    salt: str | None
    target: int
    first: int
    lane: int
    serial: int


class CopyEndOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Copy ``seq`` does not come about: end this instance's part of it, if it has one still."""

    seq: int


class CopyReady(Report, frozen=True, kw_only=True):
    """The target has slots for a prefix, and cached the first ``held`` tokens of it already."""

    seq: int
    held: int


class CopyEnded(Report, frozen=True, kw_only=True):
    """The instance has no part in a copy any more: it holds no slot, no lock and no lane for it.

    Attributes:
        error: why the prefix does not arrive, "" if it has left, or is in the cache.
        found: at the source, how many of the prefix's tokens it has cached; None elsewhere.
    """

    seq: int
    error: str = ""
    found: int | None = None
