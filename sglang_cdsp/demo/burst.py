"""The prompts of the demonstration: lengths, and when each is sent."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sent:
    """A prompt of the burst.

    Attributes:
        at_s: when it is sent, seconds from the start of the burst.
        tokens: its length.
    """

    at_s: float
    tokens: int


BURST = (
    # What comes first has some of the instances when the long ones come: those start on the rest,
    # and widen.
    Sent(0.0, 2500),
    Sent(0.1, 8000),
    Sent(0.2, 150),
    Sent(0.4, 6500),
    Sent(0.6, 400),
    Sent(0.8, 7200),
    Sent(1.0, 100),
    Sent(1.2, 1000),
    Sent(1.4, 250),
    Sent(1.6, 5000),
    Sent(1.8, 700),
    Sent(2.0, 3600),
)
"""Long and short prompts mixed, within two seconds."""
