"""What links over NIXL do to their process: UCX's variables, forked children, what it may do."""

from __future__ import annotations

import ctypes
import os
import weakref
from functools import partial
from typing import Any, Protocol

UCX_VARIABLES = {
    # Without these UCX gives up its shared-memory transports where a partner's death has to be
    # noticed, and notifications go over TCP.
    "UCX_POSIX_ERROR_HANDLING": "y",
    "UCX_SYSV_ERROR_HANDLING": "y",
    # UCX takes SIGHUP for its debugger: the process would survive a terminal that hangs up.
    "UCX_DEBUG_SIGNO": "0",
}
"""What ``prepare_environment`` sets. They count for every UCX of the process, SGLang's included."""


def prepare_environment() -> dict[str, str]:
    """Set the variables of ``UCX_VARIABLES`` that are not set yet; return those.

    UCX reads them when it is loaded, so this comes before the first import of NIXL.
    """
    new = {name: value for name, value in UCX_VARIABLES.items() if name not in os.environ}
    os.environ.update(new)
    return new


class Forkable(Protocol):
    """What holds objects that a forked child must not destroy."""

    def leave_to_parent(self) -> list[Any]:
        """Stop using them, in the child; return them."""


def keep_from_forked_children(owner: Forkable) -> None:
    """See to it that a forked child neither uses nor destroys what ``owner`` holds.

    Destroyed in the child, an agent closes connections that the parent goes on using.
    """
    os.register_at_fork(after_in_child=partial(_leave, weakref.ref(owner)))


def _leave(owner: weakref.ref[Forkable]) -> None:
    found = owner()
    if found is not None:
        for thing in found.leave_to_parent():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))  # never 0 again in this process


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def writes_need_polls() -> str:
    """Say why UCX cannot write into another process's memory by itself; "" where it can.

    It then has the receiver do it, at its next poll: correct, but not while it computes.
    """
    tls = os.environ.get("UCX_TLS", "all")
    named = {"all", "cma", "sm", "shm"} & set(tls.lstrip("^").split(","))
    if bool(named) == tls.startswith("^"):
        return f"UCX_TLS={tls} leaves out CMA"
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "process_vm_writev"):
        return "there is no process_vm_writev here"
    byte = ctypes.create_string_buffer(1)
    vector = _IoVec(ctypes.cast(byte, ctypes.c_void_p), 1)
    written = libc.process_vm_writev(
        os.getpid(), ctypes.byref(vector), 1, ctypes.byref(vector), 1, 0
    )
    if written != 1:
        return f"process_vm_writev is refused here ({os.strerror(ctypes.get_errno())})"
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as file:
            scope = file.read().strip()
    except OSError:
        return ""
    if scope != "0" and os.geteuid() != 0:
        return f"/proc/sys/kernel/yama/ptrace_scope is {scope}, not 0"
    return ""
