"""The words around the tables."""

DRAWN = """\
# The paper's evaluation, simulated: LLaMA3-8B

`PYTHONPATH=. python -m bench.paper.run`"""
MAX_LOAD = "## Maximum load"
TRACES = "# Traces"
WHY = "## Why"
CRITICAL = "## At the critical rates"
FIXED = "## Fixed improvement rates"
