"""Errors of the attention layer. Each message names what to change."""


class AttentionError(ValueError):
    """Inputs that no implementation of partial attention may be given."""


class AttentionUnsupported(AttentionError):
    """A model or device whose attention cannot be computed in parts here."""
