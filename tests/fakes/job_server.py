"""A server that responds like Ray's job server, and `sleep-rl submit` to it."""

from __future__ import annotations

import json
import threading
from http.server import ThreadingHTTPServer

from sleep_rl.cli.main import main
from tests.fakes.http_servers import Handler
from tests.fakes.processes import ROOT

DEBUG = str(ROOT / "configs" / "debug.yaml")
TOKEN = "a-token-of-this-test"


class JobServer(ThreadingHTTPServer):
    """Responds like Ray's job server; the requests come from Ray's own client.

    A job goes through `history`, a list of (status, whole log, exit code), one entry per request
    of its log, and stays at the last; an int in its place is an HTTP error.
    """

    daemon_threads = True

    def handle_error(self, *_):
        """Connections that a test breaks are not reported."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.version = b'{"version": "4", "ray_version": "2.60.0"}'
        self.redirect = ""
        self.history = [("SUCCEEDED", "whole log\n", 0)]
        self.packages = {}
        self.jobs = {}
        self.requests = []
        self.stopped = []
        self.hangs_up = False
        self.answers = threading.Event()  # what waits for an answer waits until it is set
        self.answers.set()
        self.lock = threading.Lock()

    def answer(self, method, path, headers, body):
        """(HTTP status, body, headers)"""
        self.requests.append((method, path))
        if self.redirect:
            return 307, b"", {"Location": self.redirect}
        if refusal := self.refusal(headers.get("Authorization")):
            return *refusal, {}
        if (method, path) == ("GET", "/api/version"):
            return 200, self.version, {}
        if path.startswith("/api/packages/gcs/_ray_pkg_") and path.endswith(".zip"):
            return self.answer_package(method, path, body)
        if (method, path) == ("POST", "/api/jobs/"):
            return self.answer_submission(headers, body)
        return self.answer_about(method, *path.removeprefix("/api/jobs/").partition("/"))

    def refusal(self, authorization):
        if not authorization:
            return 401, b"Unauthorized: Missing authentication token"
        if authorization != f"Bearer {TOKEN}":
            return 403, b"Forbidden: Invalid authentication token"
        return None

    def answer_package(self, method, path, body):
        uri = "gcs://" + path.rpartition("/")[2]
        if method == "PUT":
            self.packages[uri] = body
        return (200, b"", {}) if uri in self.packages else (404, b"Package does not exist", {})

    def answer_submission(self, headers, body):
        if self.hangs_up:
            raise ConnectionAbortedError
        job = json.loads(body)
        keys = {"submission_id", "entrypoint", "runtime_env", "metadata"}
        assert headers["Content-Type"] == "application/json" and job.keys() == keys
        assert all(isinstance(value, str) for value in job["metadata"].values())
        self.jobs[job["submission_id"]] = job
        answer = {"submission_id": job["submission_id"], "job_id": None}
        return 200, json.dumps(answer).encode(), {}

    def answer_about(self, method, job, _, verb):
        if job not in self.jobs:
            return 404, f"Job {job} does not exist".encode(), {}
        if (method, verb) == ("POST", "stop"):
            self.stopped.append(job)
            self.history = [("RUNNING", "", None), ("STOPPED", "", None)]
            return 200, b'{"stopped": true}', {}
        now = self.history[0]
        if isinstance(now, int):
            self.history.pop(0)
            return now, b"Traceback\n  somewhere\nOSError: the head is busy\n", {}
        if (verb == "logs" or job in self.stopped) and len(self.history) > 1:
            self.history.pop(0)
        answer = {
            "type": "SUBMISSION",
            "entrypoint": "exec python",
            "status": now[0],
            "message": "a reason",
            "driver_exit_code": now[2],
            "metadata": self.jobs[job]["metadata"],
        }
        if verb == "logs":
            answer = {"logs": now[1]}
        return 200, json.dumps(answer).encode(), {}


class _Handler(Handler):
    def handle_any(self):
        body = self.body()
        self.server.answers.wait()
        with self.server.lock:
            status, answer, headers = self.server.answer(
                self.command, self.path, self.headers, body
            )
        self.respond(status, answer, headers)

    do_GET = do_POST = do_PUT = handle_any


def submit(server, *argv):
    """Return the exit code of `sleep-rl submit` with this job server."""
    return main(["submit", *argv, "--address", server.address])
