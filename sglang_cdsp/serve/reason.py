"""Why a server has ended: the line of its log that says it."""

from __future__ import annotations

import re
import signal

OURS = "sglang-cdsp: "
"""What the pool's own last words begin with."""

EXCEPTION = re.compile(r"^(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b: \S")
"""The last line of a traceback, as Python prints it."""

BESIDE = re.compile(
    r"\d+ instances[ ,]|the kept latency model|the latency model cannot be kept|degraded:"
)
"""How lines of the pool begin that ended nothing; the first is the line on what runs."""

RECENT = 400
"""Lines at the end of a log in which the reason stands, if it does."""

TROUBLE = re.compile(r"\b(?:error|failed|cannot|killed|out of memory)\b", re.IGNORECASE)
LONGEST = 500

SIGNALS = {
    signal.SIGKILL: "; the kernel does that where memory runs out: see dmesg",
}


def reason_in(log: str) -> str:
    """The line that says most likely why a server has ended.

    What follows a reason in SGLang's logs are the complaints of its other processes, so the kinds
    of lines are tried in turn: the pool's own words, the end of a traceback, any other trouble,
    and then just the last line.

    Returns:
        A line of ``log`` without what surrounds it, cut to ``LONGEST``; "" for an empty log.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()][-RECENT:]
    said = [line.partition(OURS)[2] for line in lines]
    ours = [words for words in said if words and not BESIDE.match(words)]
    exceptions = [line for line in lines if EXCEPTION.match(line)]
    trouble = [line for line in lines if TROUBLE.search(line)]
    for found in (ours, exceptions, trouble, lines):
        if found:
            return found[-1][:LONGEST]
    return ""


def how_ended(status: int) -> str:
    """An exit status in words.

    Args:
        status: as ``subprocess.Popen.returncode``: negative for a signal.
    """
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        name = signal.Signals(-status)
    except ValueError:
        return f"was killed by signal {-status}"
    return f"was killed by {name.name}{SIGNALS.get(name, '')}"
