"""Layouts of small processes in place of servers."""

from __future__ import annotations

import sys

from sglang_cdsp.protocol.ports import free_ports
from sglang_cdsp.serve.layout import Layout, Part
from sglang_cdsp.stack.processes import Command

SERVER = """
import http.server, json, os, signal, sys, threading, time
last = sys.argv[2]
def die():
    time.sleep(0.2)
    print("sglang-cdsp:", last, flush=True)
    print("a complaint", flush=True)
    os._exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        if self.path == "/cdsp/status":
            self.wfile.write(json.dumps({"policy": "cdsp-late", "pool": {}}).encode())
            if last:
                threading.Thread(target=die, daemon=True).start()
    def log_message(self, *_): pass
def leave(*_):
    print("told to end", time.monotonic_ns(), flush=True)
    raise SystemExit(0)
signal.signal(signal.SIGTERM, leave)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
"""Answers every path. With a second argument it ends once asked for its status, and says that."""

STUBBORN = SERVER.replace("SIGTERM, leave)", "SIGTERM, signal.SIG_IGN)")
"""Goes on when it is told to end."""

BROKEN = """
print("Traceback (most recent call last):")
print("ValueError: no weights here")
raise SystemExit(4)
"""


def part(name: str, last_words: str = "", script: str = SERVER) -> Part:
    """One process, which is healthy at once."""
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    arguments = (sys.executable, "-c", script, str(port), last_words)
    return Part(Command(name, arguments, f"{url}/health"), url, f"does {name}")


def layout_of(*parts: Part) -> Layout:
    """The first is the front, the last has the pool."""
    return Layout(parts, parts[0], parts[-1])
