"""HTTP servers in a thread of the test: a chat endpoint, and a hub of models."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """A handler that prints no log."""

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        """Return the body of the request."""
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def respond(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole response; one to HEAD has no body."""
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def in_a_thread(server: ThreadingHTTPServer) -> Iterator[str]:
    """Serve until the end of the block; yield the server's address."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(content: str | None) -> tuple[int, str]:
    """Return (status, JSON) of a chat answer."""
    return 200, json.dumps({"choices": [{"message": {"content": content}}]})


@contextmanager
def chat_server(answer: Callable[[dict], tuple[int, str]]) -> Iterator[tuple[str, list]]:
    """Yield (address of a server that responds with (status, text) of `answer(body)`, list of the
    requests: (path, Authorization, body)).
    """
    asked: list[tuple[str, str | None, dict]] = []

    class Chat(Handler):
        def do_POST(self) -> None:
            body = json.loads(self.body())
            asked.append((self.path, self.headers.get("Authorization"), body))
            status, text = answer(body)
            self.respond(status, text.encode(), {"Content-Type": "application/json"})

    with in_a_thread(ThreadingHTTPServer(("127.0.0.1", 0), Chat)) as address:
        yield address, asked


@contextmanager
def hub_server(
    answers: Mapping[str, tuple[int, str | None]],
) -> Iterator[tuple[str, list[str]]]:
    """Yield (address of a hub, list of its requests: "METHOD path"). It responds with (status,
    error code) of the first model of `answers` that is part of the path, else with 404.
    """
    asked: list[str] = []

    class Hub(Handler):
        def do_HEAD(self) -> None:
            asked.append(f"{self.command} {self.path}")
            found = (answer for model, answer in answers.items() if model in self.path)
            status, code = next(found, (404, None))
            self.respond(status, b"{}", {"X-Error-Code": code} if code else {})

        do_GET = do_HEAD

    with in_a_thread(ThreadingHTTPServer(("127.0.0.1", 0), Hub)) as address:
        yield address, asked
