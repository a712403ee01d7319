"""How writes to decode fail."""


class TransferFailed(RuntimeError):
    """A KV write to decode failed; names the room.

    Attributes:
        uncertain: bytes of it may still arrive at decode, so its pages are not safe yet.
    """

    def __init__(self, message: str, *, uncertain: bool = False) -> None:
        super().__init__(message)
        self.uncertain = uncertain
