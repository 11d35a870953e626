"""`sleep-rl watch`: a local web server that shows a run, also while it is running.

It only reads the run's folder, and serves the page, its state as JSON, its figures and the report,
by GET. On a loopback address it refuses requests for any other than a local host name (DNS
rebinding).
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from sleep_rl.contracts.errors import InputError, one_line
from sleep_rl.report.page import page
from sleep_rl.watch.figures import LiveFigures
from sleep_rl.watch.page import PAGE, SCRIPT_DIGEST
from sleep_rl.watch.state import RunState

HOLD_S = 2.0
"""Seconds for which the result of `held` is cached."""
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; "
    "frame-ancestors 'none'"
)
PAGE_POLICY = f"{POLICY}; script-src 'sha256-{SCRIPT_DIGEST}'; connect-src 'self'"
HTML = "text/html; charset=utf-8"
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


class Server(ThreadingHTTPServer):
    """The web server of the run in `run_dir`, at `url`.

    `held(folder)`: whether a process holds the run's lock. Raises InputError if there is no such
    run, or the address is not available.
    """

    daemon_threads = True

    def __init__(
        self, run_dir: str | Path, host: str, port: int, held: Callable[[Path], bool]
    ) -> None:
        folder = Path(run_dir)
        if not (folder / "metrics.jsonl").is_file() and not (folder / "run.json").is_file():
            raise InputError(f"{folder}: expected the folder of a run with metrics.jsonl")
        if not 0 <= port < 65536:
            raise InputError(f"--port: 0 (any that is free) to 65535, got {port}")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = found[0]
            super().__init__(found[4][:2], _Handler)
        except (OSError, UnicodeError) as error:
            raise InputError(
                f"--host {host} --port {port}: an address to listen at, got "
                f"{getattr(error, 'strerror', None) or error}; --port 0 takes any "
                "free port"
            ) from error
        self.folder = folder
        self.run_state = RunState(folder, self._is_held)
        self._figures = LiveFigures()
        self._lock = threading.Lock()
        """Guards the state."""
        self._drawing = threading.Lock()
        """Guards matplotlib, whose settings are global."""
        self._held = held
        self._held_time = -HOLD_S
        self._held_result = False
        self.loopback = ipaddress.ip_address(self.server_address[0].partition("%")[0]).is_loopback
        self.names = {"localhost", "127.0.0.1", "::1", host.lower()}

    @property
    def url(self) -> str:
        """Address of the page."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def server_bind(self) -> None:
        """Bind the socket without HTTPServer's look-up of the host's full name, which may be slow
        and is not used.
        """
        if self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: object, client_address: object) -> None:
        """Print the error of a request as one line, unless the connection was closed."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            print(
                f"sleep-rl watch: {type(error).__name__}: {one_line(error, limit=None)}",
                file=sys.stderr,
                flush=True,
            )

    def state(self) -> bytes:
        """Return the run's state as JSON, without the current time."""
        with self._lock:
            return json.dumps(self.run_state.update(), allow_nan=False).encode()

    def curves(self) -> tuple[str, bytes]:
        """Return (version, HTML) of the run's figures; the version may be older than the state's,
        since drawing is rate-limited.
        """
        with self._drawing:
            with self._lock:
                version = self.run_state.curves
                due = self._figures.is_due(version)
                charts = self.run_state.charts() if due else []
            if due:
                self._figures.draw(version, charts)
            return self._figures.newest()

    def report(self) -> bytes:
        """Return the run's report as HTML."""
        with self._drawing:
            return page(self.folder / "metrics.jsonl").encode("utf-8", "replace")

    def _is_held(self, folder: Path) -> bool:
        if time.monotonic() - self._held_time >= HOLD_S:
            self._held_time = time.monotonic()
            self._held_result = self._held(folder)
        return self._held_result


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: Server

    def do_GET(self) -> None:
        """Answer a request; called by BaseHTTPRequestHandler."""
        if self.server.loopback and not self._local():
            return self._send(403, TEXT, b"not a local host name\n")
        answers = {
            "/": self._page,
            "/state.json": self._state,
            "/curves": self._curves,
            "/report": self._report,
        }
        answer = answers.get(urlsplit(self.path).path)
        if answer is None:
            return self._send(404, TEXT, b"no such page\n")
        try:
            answer()
        except InputError as error:
            self._send(503, TEXT, f"{error}\n".encode("utf-8", "replace"))
        except ConnectionError:
            raise
        # Boundary: the page shows the error, and continues to poll.
        except Exception as error:
            self._send(
                500,
                TEXT,
                f"sleep-rl watch failed: {type(error).__name__}: {one_line(error)}\n".encode(
                    "utf-8", "replace"
                ),
            )
            raise

    def _local(self) -> bool:
        """Return whether the request is for a local host name; any port, since `ssh -L` changes
        it.
        """
        host = (self.headers.get("Host") or "").lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        return name in self.server.names

    def _page(self) -> None:
        self._send(200, HTML, PAGE.encode(), PAGE_POLICY)

    def _state(self) -> None:
        body = self.server.state()
        tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
        if self.headers.get("If-None-Match") == tag:
            return self._send(304, JSON, b"", tag=tag)
        self._send(200, JSON, b'{"now": %.3f, %b' % (time.time(), body[1:]), tag=tag)

    def _curves(self) -> None:
        version, body = self.server.curves()
        self._send(200, HTML, body, tag=f'"{version}"')

    def _report(self) -> None:
        self._send(200, HTML, self.server.report())

    def _refuse(self) -> None:
        self.close_connection = True  # the request may have a body, which is not read
        self._send(405, TEXT, b"only GET\n")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _send(
        self, status: int, kind: str, body: bytes, policy: str = POLICY, tag: str = ""
    ) -> None:
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        headers |= {"ETag": tag} if tag else {}
        headers |= {"Allow": "GET"} if status == 405 else {}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "sleep-rl"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing for a request, since the page polls every second."""
