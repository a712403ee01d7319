"""`python -m sglang_cdsp serve`: what it starts, what it checks before, what it shows."""
