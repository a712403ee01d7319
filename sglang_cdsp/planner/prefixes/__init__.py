"""Prefixes that instances have cached: who holds which, and plans that start from one."""
