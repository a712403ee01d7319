"""Servers as processes of their own: their command lines, their start, their end for sure."""
