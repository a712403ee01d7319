"""Hashes of a prompt's pages, as SGLang's prefix trees name pages in their KV events.

A page's name is the first 8 bytes of a SHA-256 chain over the tokens of all pages up to it, which
starts from the salt of the request's namespace (``mem_cache/utils.py`` in SGLang, and the same in
its Rust tree). SGLang's ``extra_key`` is not part of it; ``namespaces.py`` sees to that.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable, Sequence
from copy import copy
from typing import overload

SALT_SEED = b"sglang-cache-salt-v1\0"
AT_ONCE = 64
"""Pages that are hashed at once when one of them is asked for."""


def seed_of(salt: str | None) -> bytes:
    """The digest that comes before a prompt's first page, b"" without a salt."""
    # What is no text in UTF-8 has names that no tree uses, and so is found nowhere.
    seed = SALT_SEED + salt.encode(errors="surrogatepass") if salt else b""
    return hashlib.sha256(seed).digest() if seed else b""


def name_of(digest: bytes) -> int:
    """The name of the page with a digest, a signed 64-bit integer."""
    return int.from_bytes(digest[:8], "big", signed=True)


class PageHashes(Sequence[int]):
    """The names of a prompt's whole pages, each hashed when it is first asked for.

    Signed 64-bit integers. What was hashed is kept, so a prompt that waits is hashed once.
    """

    def __init__(self, tokens: Iterable[int], page_size: int, salt: str | None = None) -> None:
        """Hash nothing yet.

        Args:
            tokens: token ids; each fits 32 bits.
            page_size: tokens of a page; what is left of the last one has no name.
            salt: of the namespace, None or "" for none.
        """
        ids = array("I", tokens)
        if sys.byteorder != "little":
            ids.byteswap()
        self._bytes = ids.tobytes()
        self._width = ids.itemsize * page_size
        self._count = len(ids) // page_size
        self._names = array("q")
        self.salt = salt or None
        self._digest = seed_of(salt)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...

    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._count)
            self._hash_to(max(start, stop))
            return self._names[start:stop:step]
        if not -self._count <= index < self._count:
            raise IndexError(f"page {index} of {self._count}")
        place = index % self._count
        self._hash_to(place + 1)
        return self._names[place]

    def in_common(self, other: PageHashes) -> int:
        """How many pages two prompts of one page size begin with alike; nothing is hashed."""
        mine, theirs, width = self._bytes, other._bytes, self._width
        if self.salt != other.salt or mine[:width] != theirs[:width]:
            return 0  # as most prompts
        low, high = 0, min(self._count, other._count)
        while low < high:
            middle = (low + high + 1) // 2
            start, stop = low * width, middle * width
            if mine[start:stop] == theirs[start:stop]:
                low = middle
            else:
                high = middle - 1
        return low

    def first(self, pages: int) -> PageHashes:
        """The first of them as a prompt of its own; nothing is hashed again."""
        one = copy(self)
        one._count = min(pages, self._count)
        one._bytes = self._bytes[: one._count * self._width]
        one._names = self._names[: one._count]
        return one

    @property
    def token_bytes(self) -> bytes:
        """The token ids of its pages, little-endian uint32."""
        return self._bytes[: self._count * self._width]

    @property
    def hashed(self) -> int:
        """Pages that were hashed so far."""
        return len(self._names)

    def _hash_to(self, pages: int) -> None:
        """Hash the pages before `pages`, and some more."""
        if pages <= len(self._names):
            return
        width, data, digest, names = self._width, self._bytes, self._digest, self._names
        last = min(self._count, pages + AT_ONCE)
        sha, number = hashlib.sha256, int.from_bytes
        for start in range(len(names) * width, last * width, width):
            digest = sha(digest + data[start : start + width]).digest()
            names.append(number(digest[:8], "big", signed=True))
        self._digest = digest
