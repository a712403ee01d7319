"""Where the compiled search keeps its numbers.

All integers are rows of one array `i` and all floats rows of another, `f`, because numba counts
references to every array at every call. Rows are as long as the longest of them needs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

SINGLE, PAPER, CDSP = 0, 1, 2
"""Algorithm 2 alone; Algorithm 1; the chains of the whole pool."""

inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")
"""For functions that only `solve` calls: no wrappers and no cache of their own, so that the first
compilation is short."""

INF = np.inf
MANY = np.int64(1) << 62
ZERO, ADD, REMOVE = np.int64(0), np.int64(1), np.int64(-1)
NEAR, WRITE, DRY = np.bool_(False), np.bool_(False), np.bool_(True)
"""Typed constants: numba compiles a function anew for each literal that it is called with."""

# Rows of `i`. Per instance: by (queue, index); its node; free KV slots; the stack of groups;
# whether in the group placed so far; scratch of restrict; members of the best plan.
ORDER, NODE, FREE, MEMBERS, MARKED, INSIDE, BEST_MEMBERS = 0, 1, 2, 3, 4, 5, 6
# Per node: members of the group placed so far; scratch of the joins.
HOLDING, REST = 7, 8
# Per size or per chunk: SP sizes; tokens and SP sizes of the path and of the best plan.
SIZES, LENGTHS, WIDTHS, BEST_LENGTHS, BEST_WIDTHS = 9, 10, 11, 12, 13
# BEST[0]: chunks of the best plan; [1] whether its groups are spread.
BEST = 14
# From here three rows per depth: a level of the search; what may join, each node's instances by
# queue; how many they are per node. The last depth is scratch of with_room.
DEPTHS = 15
LEVEL, LIST, COUNT = 0, 1, 2

# Rows of `f`. Per instance: queue seconds, inf = down.
QUEUE = 0
# Per size: Equation 1, and what set_bounds computes.
A, B, C, D, E = 1, 2, 3, 4, 5
READY, LEAST_B, LEAST_C, LEAST_D, LEAST_A, QUEUES, STRADDLES = 6, 7, 8, 9, 10, 11, 12
# SCORE[0]: TTFT of the best plan; [1] its cost; [2] TTFT of Algorithm 2; [3] TTFT to stay below.
SCORE = 13
# From here one row per depth: a level of the search.
FLOATS = 14


class Given(NamedTuple):
    """The scalars of a planning problem: n instances, k nodes, m sizes.

    roomy: no instance's memory can matter. lazy: besides, there is one node, so that groups are
    known by their size and written out only when kept.
    """

    n: int
    k: int
    m: int
    total: int  # history and prompt, tokens
    history_size: int
    page: int
    min_chunk: int
    per_node: int
    rate: float
    price: float
    spread_cost: float
    roomy: bool
    lazy: bool


class Prefix(NamedTuple):
    """The chunks placed so far, as the next one sees them."""

    depth: int  # how many
    size: int  # members of the last group (at first, of the history's)
    clock: float  # end of the last chunk
    ready: float  # when all members have done their earlier work
    placed: int  # tokens in front of the next chunk
    held: int  # KV slots of the prompt on each member
    slack: int  # least (free slots + slots already held as cached history) of a member
    queues: float  # sum of the members' queue times


class Joined(NamedTuple):
    """A group made by a join: when it is free, and what its new members bring."""

    ready: float  # inf: too few can join
    straddles: bool
    least: int  # least free slots of a new member
    queues: float  # sum of the new members' queue times
