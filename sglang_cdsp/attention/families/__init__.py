"""Kinds of attention: one module a family, all behind one interface (``types.py``)."""
