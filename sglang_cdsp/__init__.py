"""Chunkwise dynamic sequence parallelism (CDSP) for long-context prefill in SGLang."""

__version__ = "0.1.0"
