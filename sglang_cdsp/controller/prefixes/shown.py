"""What subscribers of the pool's KV events see of namespaces: the names that stock SGLang gives.

Inside of the pool a namespace has one salt, made of a request's ``extra_key`` and ``cache_salt``
(``namespaces.py``). In SGLang's events the extra key has no part in a page's name, so pages of two
extra keys have one; they are told as one page, which is there while any of them is. In the format
``dynamo`` of SGLang 0.5.23 both are part of the name.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sglang_cdsp.controller.prefixes.hashes import name_of, seed_of
from sglang_cdsp.controller.prefixes.namespaces import MARK, keys_of

Renaming = Callable[[int, str | None, str | None], int]
"""The published name of a page: from its name in SGLang's trees, its extra key and its salt."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A page that has another name outside of the pool.

    Attributes:
        name: None for a page that cannot be told, as the one before it is not known.
        digest: SGLang's of the page, which the next one's follows from; b"" where the tree's own
            name is SGLang's.
    """

    name: int | None
    digest: bytes = b""


class ShownNames:
    """The names of pages outside of the pool, for those that have another one inside."""

    def __init__(self, rename: Renaming | None = None) -> None:
        """``rename`` is that of the format in which events are published, None for none."""
        self._rename = rename
        self._shown: dict[int, Shown] = {}

    def __len__(self) -> int:
        return len(self._shown)

    def learn(
        self, pages: Sequence[int], tokens: Sequence[int], parent: int | None, salt: str | None
    ) -> str | None:
        """Pages of one prompt were stored, in order; returns the salt that SGLang tells of them.

        Args:
            tokens: of all of these pages.
            parent: the page before the first one, None for none.
            salt: of the namespace, as the trees know it.
        """
        extra_key, cache_salt = keys_of(salt)
        if salt is not None and salt.startswith(MARK):
            self._learn_anew(pages, tokens, parent, extra_key, cache_salt)
        elif self._rename is not None and salt is not None:
            for page in pages:
                if page not in self._shown:
                    self._shown[page] = Shown(self._rename(page, None, cache_salt))
        return cache_salt

    def _learn_anew(
        self,
        pages: Sequence[int],
        tokens: Sequence[int],
        parent: int | None,
        extra_key: str | None,
        cache_salt: str | None,
    ) -> None:
        """Hash pages as SGLang does without an extra key."""
        before = Shown(0, seed_of(cache_salt))
        if parent is not None:
            before = self._shown.get(parent, Shown(None))
        width = len(tokens) // len(pages)
        for number, page in enumerate(pages):
            known = self._shown.get(page)
            if known is not None:
                before = known
            elif before.name is not None:
                data = _bytes_of(tokens[number * width : (number + 1) * width])
                digest = hashlib.sha256(before.digest + data).digest()
                name = name_of(digest)
                if self._rename is not None:
                    name = self._rename(name, extra_key, cache_salt)
                before = Shown(name, digest)
            self._shown[page] = before

    def differs(self, page: int) -> bool:
        """Whether a page has another name outside."""
        return page in self._shown

    def name(self, page: int | None) -> int | None:
        """The name of a page outside; None for no page, or one that cannot be told."""
        if page is None:
            return None
        shown = self._shown.get(page)
        return page if shown is None else shown.name

    def drop(self, pages: Iterable[int]) -> None:
        """Nobody holds these any more."""
        for page in pages:
            self._shown.pop(page, None)

    def clear(self) -> None:
        """Nobody holds anything any more."""
        self._shown.clear()


def _bytes_of(tokens: Sequence[int]) -> bytes:
    """Tokens as SGLang hashes them: 32 bits each, the least byte first."""
    ids = array("I", tokens)
    if sys.byteorder != "little":
        ids.byteswap()
    return ids.tobytes()
