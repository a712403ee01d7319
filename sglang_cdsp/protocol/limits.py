"""Numbers that the controller and the schedulers must agree on."""

LANES = 8
"""Chunks with more than one member that may run at once on an instance.

Each has link buffers of its own there, so none waits for another one's.
"""
