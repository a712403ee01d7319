"""Processes that do not outlive the one that started them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_ENDED_WITH_PARENT = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends; Linux only.

    A parent that is gone by now sends no such signal any more, so this process ends at once. SGLang
    asks for the signal too, but later, and does not look whether it came too late. The program's
    first process, which ``multiprocessing`` has not started, is left alone.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if not parent.is_alive():
        os._exit(_ENDED_WITH_PARENT)
