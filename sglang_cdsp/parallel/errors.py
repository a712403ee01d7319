"""Errors of the parallel layer. Each message names what to change."""


class LayoutError(ValueError):
    """A split or a placement of tokens that cannot be: overlapping spans, an unknown holder."""


class LinkError(RuntimeError):
    """A link of the mesh failed, or was used in a way that it cannot serve."""
