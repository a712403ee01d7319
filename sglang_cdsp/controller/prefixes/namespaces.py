"""Namespaces of the prefix cache: one salt for all that keeps requests' prefixes apart.

SGLang keeps prefixes of requests with another ``extra_key`` or ``cache_salt`` apart in its trees.
Its KV events tell the salt, and hash it into the names of pages, but not the extra key: pages of
two extra keys bear one name, and an eviction of the one would be taken for the other's. So the
controller turns both into one salt before anything else sees a request. Subscribers of the pool's
events are told SGLang's own salts and names (``shown.py``).
"""

from __future__ import annotations

import json

MARK = "sglang-cdsp-namespace-v1:"


def salt_of(extra_key: str | None, cache_salt: str | None) -> str | None:
    """The one salt of a namespace, None for the common one.

    A salt alone stays as it is, so that others who know it find the pages' names in KV events. No
    two namespaces have one salt: a salt that looks like one that is made here is made one, too.
    """
    if not extra_key and not (cache_salt or "").startswith(MARK):
        return cache_salt or None
    return MARK + json.dumps([extra_key or None, cache_salt or None], separators=(",", ":"))


def keys_of(salt: str | None) -> tuple[str | None, str | None]:
    """The ``extra_key`` and the ``cache_salt`` that a namespace's one salt was made of."""
    if salt is None or not salt.startswith(MARK):
        return None, salt
    extra_key, cache_salt = json.loads(salt.removeprefix(MARK))
    return extra_key, cache_salt
