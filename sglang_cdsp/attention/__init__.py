"""Exact attention over the KV of a whole SP group."""
