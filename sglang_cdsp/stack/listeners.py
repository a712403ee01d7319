"""Which processes listen on a TCP port, read from ``/proc``. Standard library only."""

import contextlib
import os

_LISTEN = "0A"


def holders(port: int) -> set[int]:
    """Return the ids of the processes that listen on ``port`` of any address.

    Only those whose files this user may read; empty where nobody listens.
    """
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not wanted:
        return set()
    return {int(name) for name in os.listdir("/proc") if name.isdigit() and _holds(name, wanted)}


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError), open(table, encoding="ascii") as file:
            for line in list(file)[1:]:
                fields = line.split()
                local, state, inode = fields[1], fields[3], fields[9]
                if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                    inodes.add(inode)
    return inodes


def _holds(pid: str, sockets: set[str]) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:  # gone, or another user's
        return False
    for name in names:
        with contextlib.suppress(OSError):
            if os.readlink(f"{folder}/{name}") in sockets:
                return True
    return False
