"""The page about the tested releases, made from the table of what is relied on."""

from __future__ import annotations

from tests.contract.changed import Changed
from tests.contract.table import ROWS, cell

INTRODUCTION = """\
# Releases of SGLang

One code base serves SGLang 0.5.21, which is pinned, and 0.5.23. What a release does is probed in
its parts (`sglang_cdsp/releases.py`), never told from its number. Another release is refused unless
`--cdsp-any-sglang-version` is given.

This page is written from the table in `tests/contract`:

    python -m tests.contract.releases_page > docs/releases.md

## Which release ran where

| | 0.5.21 | 0.5.23 |
|---|---|---|
| its own pins | torch 2.13.0, transformers 5.12.1 | torch 2.14.1, transformers 5.19.0 |
| torch in these runs (CPU) | 2.13.0, as pinned | 2.13.0, out of its pin: 2.14.1 has no CPU build |
| environment | `make install` | `make newest` |
| contract table, unit tests of transfer, controller and checks | yes | yes (`make test-newest`) |
| real servers over NIXL: parity, ends and aborts, features | yes | yes (`make test-newest`) |
| real servers over Mooncake (TCP) | yes | not yet passed |
| faults | yes | by hand |
| tensor parallelism, over NIXL | yes | yes (`tests/serving_tp`) |
| stock servers on the CPU platform, patches | yes | not run |
| CUDA | not yet | not yet |

For CUDA use only a release that has passed a check there with its own pins: none has so far.

A prefill and a decode server must run the same release: over NIXL a 0.5.23 decode server waits for
a word that 0.5.21 does not send, and neither takes the other's acknowledgement of an abort.

## What differs, and what the code does about it

| by | why | in 0.5.21 | in 0.5.23 | what the code does | told by |
|---|---|---|---|---|---|
"""

NOTES = """
## What clients see differ

- `output_token_ids_logprobs` of a disaggregated request: decode is not told the first token's. In
  0.5.21 its list starts with the second token, in 0.5.23 it starts with an empty entry.

## What later work meets in 0.5.23

Read in its sources; `0.5.21` form first.

- A request's extent: `Req.extend_range` (start and end) and `set_extend_range` are gone. The next
  extend starts at `Req.prefix_len` and ends at `Req.extend_end`; `extend_len` is a property, and
  `_refresh_fill_ids` has become `refresh_fill_ids`.
- A request's cached prefix: `Req.prefix_indices`, a tensor of slots, is gone. `prefix_len` counts
  them; the slots are on the path to `last_node` (`tree_cache.prefix_device_indices(req)`, valid
  until the next allocation or eviction unless the path is locked) and, once allocated, in the
  request's row. `MatchResult.device_indices` has become `device_prefix_len`.
- A request's lock: `Req.lock_receipt` has become `Req.lock`, a `TreeLock` or None, taken by
  `tree_cache.lock(node)` and given back by `tree_cache.unlock(lock)`; `inc_lock_ref` and
  `dec_lock_ref` stay below them. Binding a request to the root sets `prefix_len = 0`,
  `lock = None` and also `kv.cache_inserted_len = 0`.
- `prepare_for_prebuilt` copies no prompt to the device any more (`input_ids = None`, the first
  decode input comes from `process_prebuilt`); `run_batch` takes `extend_input_len_per_req` from the
  batch's `extend_lens`.
- Forwards that give way: the eager runner now runs a model inside `forward_context(...)` and
  `model_context()`, two context managers that restore on exit. Coroutines that leave out of order
  leave the wrong one set: whoever switches has to set the context anew at each switch and after an
  end. `ForwardContext` has a second field, `moe_num_token_non_padded`. `SGLANG_EAGER_INPUT_NO_COPY`
  is as it was.
- Decode's deferred release: an acknowledgement counts only with the generation of the abort that
  holds the room, and stock prefill gives no acknowledgement at all for a room to which NIXL
  rejected a post or left a handle running.
- `get_parallel().dp_size` still counts plain replicas; `num_dp_ranks` counts attention-parallel
  groups as well.
"""


def page() -> str:
    """The table in words, as Markdown."""
    parts = [INTRODUCTION]
    for row in ROWS:
        need = row.need
        if isinstance(need, Changed):
            by = ", ".join(f"`{name}`" for name in row.by)
            forms = (cell(f"`{form.module}`: {form.words()}") for form in (need.older, need.newer))
            told = f"`{need.newer_if}`" if need.newer_if else ""
            parts.append(f"| {by} | {row.why} | {' | '.join(forms)} | {need.handled} | {told} |\n")
    return "".join([*parts, NOTES])


if __name__ == "__main__":
    print(page(), end="")
