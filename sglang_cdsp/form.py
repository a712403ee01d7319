"""The two forms of a pool: a prefill server before stock decode servers, or one server."""

from __future__ import annotations

from enum import Enum


class Form(Enum):
    """What a pool serves; the values are SGLang's ``--disaggregation-mode``."""

    PREFILL = "prefill"
    ONE_SERVER = "null"


def form_of(disaggregation_mode: str) -> Form:
    """The form of a pool's server, from SGLang's ``disaggregation_mode``.

    Raises:
        ValueError: a pool has no such form.
    """
    return Form(disaggregation_mode)


def tells_caches(disaggregation_mode: str, *, radix_cache_off: bool) -> bool:
    """Whether a pool's server tells subscribers what its instances have cached, if it is asked to.

    One server does; a prefill server where it keeps prefixes (``--cdsp-prefix-cache``).
    """
    one_server = disaggregation_mode == Form.ONE_SERVER.value
    prefills = disaggregation_mode == Form.PREFILL.value
    return one_server or (prefills and not radix_cache_off)
