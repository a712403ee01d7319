"""Kills sessions when the program that started them is gone.

Run as a script with its standard input a pipe from that program. Each line names a session to
guard; the line ``done`` releases all. When the pipe ends without it, the program was killed before
it could clean up, and every process of the guarded sessions is killed. Standard library only and
nothing of this package: the script has to be up long before a server is.
"""

import os
import signal
import sys

RELEASE = "done"


def session_members(sessions: set[int]) -> list[int]:
    """Return the ids of the living processes in ``sessions``, zombies left out."""
    members = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                # The command's name stands in parentheses and may hold spaces.
                state, _, _, session = file.read().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) in sessions and state != "Z":
            members.append(int(name))
    return members


def kill_sessions(sessions: set[int]) -> None:
    """Kill until nothing is left: a process may start another while it is being killed."""
    while members := session_members(sessions):
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def guard() -> None:
    """Follow the pipe to its end."""
    sessions: set[int] = set()
    for line in sys.stdin:
        if line.strip() == RELEASE:
            return
        sessions.add(int(line))
    kill_sessions(sessions)


if __name__ == "__main__":
    guard()
