"""Which life of which seat a scheduler is: said by its launcher, in the environment.

Every process that a scheduler starts inherits it. So it also tells which processes belong to a
life, however they were started and whoever their parent is by now.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from sglang_cdsp.protocol.addresses import left_in

ENV_VAR = "SGLANG_CDSP_LIFE"


@dataclass(frozen=True)
class Life:
    """A life of a seat.

    Attributes:
        pool: what no other pool of the machine has.
        seat, incarnation: which life it is.
        slots: KV slots that it shall have, in tokens; None for as many as fit.
    """

    pool: str
    seat: int
    incarnation: int
    slots: int | None = None

    @property
    def mark(self) -> str:
        """The value of ``ENV_VAR`` in its processes."""
        return json.dumps(asdict(self))


def this_life() -> Life:
    """What the launcher said of this process.

    Raises:
        RuntimeError: outside a process that the pool controller started.
    """
    return Life(**json.loads(left_in(ENV_VAR)))


def members(life: Life) -> list[int]:
    """Ids of the life's processes that can still run code of theirs.

    Those of other users cannot be looked into. One that is ending has no memory, hence no
    environment any more.
    """
    mark = f"{ENV_VAR}={life.mark}".encode()
    found: list[int] = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            environment = Path(entry.path, "environ").read_bytes()
        except OSError:
            continue
        if mark in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


def stopped(pid: int) -> bool:
    """Whether somebody has stopped the process (SIGSTOP); a debugger's hold does not count."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[:1] == ["T"]
