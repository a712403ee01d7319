"""Families of attention by forms of the pool by what a client may ask, on real servers."""
