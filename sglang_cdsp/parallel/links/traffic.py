"""What has gone over a process's links, counted as it goes and taken from time to time."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass
class Traffic:
    """Counts since they were taken last.

    Attributes:
        sent_bytes: of the messages that were handed to the links.
        waited_s: seconds in which messages were waited for; something else may have run meanwhile.
    """

    sent_bytes: int = 0
    waited_s: float = 0.0

    def taken(self) -> Traffic:
        """The counts; they begin again from nothing."""
        counts = replace(self)
        self.sent_bytes, self.waited_s = 0, 0.0
        return counts
