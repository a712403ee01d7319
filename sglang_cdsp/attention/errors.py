"""Errors of the attention layer. Each message names what to change."""


class AttentionError(ValueError):
    """Inputs that no implementation of partial attention may be given."""


class AttentionUnsupported(AttentionError):
    """A device, dtype or head dimension for which nothing here computes partial attention."""
