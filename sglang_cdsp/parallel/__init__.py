"""Sequence parallelism over tensors and ranks: layout, links, movement. Knows no requests."""
