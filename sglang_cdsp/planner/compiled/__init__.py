"""The compiled search: those of `paper.py` and `search.py` with numba, in microseconds.

Same steps and the same arithmetic, so both give the same plan (tests/planner/compiled). Levels that
cannot lead to a better plan are cut off by a lower bound, which the plain form does without. Groups
are nested, so one stack serves all depths: MEMBERS[:size] is the group placed so far, MARKED and
HOLDING say which instances and how many per node it has.

`arrays` says where the numbers lie, `solve` is the entry. Only `solve` is cached, beside its file;
`fast.compiled_search` compiles it or loads it before the first request.
"""

from sglang_cdsp.planner.compiled.arrays import CDSP, PAPER, SINGLE
from sglang_cdsp.planner.compiled.solve import OPTIONS, solve

__all__ = ["CDSP", "OPTIONS", "PAPER", "SINGLE", "solve"]
