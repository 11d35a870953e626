"""Ray's job server over its documented REST API, without importing Ray: submit, watch and stop a
job.

Token authentication is Ray's own: RAY_AUTH_TOKEN, else the file that RAY_AUTH_TOKEN_PATH names,
else ~/.ray/auth_token; RAY_AUTH_MODE=token makes one a must, RAY_AUTH_MODE=disabled sends none.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from sleep_rl.contracts.errors import InputError, RunError

ADDRESS = re.compile(r"https?://[A-Za-z0-9._\-\[\]:]+/?")
TIMEOUT_S = 30.0  # of one request
MOST_BYTES = 100 << 20  # what Ray's job server takes in one request


class Unreachable(InputError):
    """Nobody answers at the address."""


class Trouble(RunError):
    """The job server answers that it cannot; it may be able to later."""


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """The job server redirects nothing; the token is for nobody else."""
        return None


class JobServer:
    """The job server of a Ray cluster, e.g. at http://HEAD:8265. Raises InputError when there is
    none, when it rejects the token or the request, and when it does not know a job.
    """

    def __init__(self, address: str | None) -> None:
        if not address or not ADDRESS.fullmatch(address):
            raise InputError(
                "--address: the job server of a Ray cluster, e.g. "
                f"http://HEAD:8265, got {address or 'nothing'}"
            )
        self.address = address.rstrip("/")
        self._token = _token()
        self._opener = urllib.request.build_opener(_Stay)
        if not isinstance(self._json("GET", "/api/version").get("ray_version"), str):
            raise self._nonsense("an answer without ray_version")

    def upload(self, package: bytes) -> str:
        """Brings a zip file to the cluster, if it is not there already; returns its URI for a
        runtime environment.
        """
        if len(package) > MOST_BYTES:
            raise InputError(
                f"the working directory has {len(package) >> 20} MiB as a zip file, "
                "a job server takes "
                f"{MOST_BYTES >> 20} MiB"
            )
        name = f"_ray_pkg_{hashlib.sha256(package).hexdigest()[:32]}.zip"
        try:
            self._request("GET", f"/api/packages/gcs/{name}")
        except _Unknown:
            self._request("PUT", f"/api/packages/gcs/{name}", package, limit_s=10 * TIMEOUT_S)
        return f"gcs://{name}"

    def submit(
        self, job: str, entrypoint: str, environment: dict[str, Any], metadata: dict[str, str]
    ) -> None:
        """Starts a job with the id `job`."""
        body = {
            "submission_id": job,
            "entrypoint": entrypoint,
            "runtime_env": environment,
            "metadata": metadata,
        }
        answer = self._json("POST", "/api/jobs/", json.dumps(body).encode(), limit_s=4 * TIMEOUT_S)
        if answer.get("submission_id") != job:
            raise self._nonsense(f"an answer about another job than {job}")

    def info(self, job: str) -> dict[str, Any]:
        """What is known about a job: status (PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED),
        message, metadata and, once it has ended, driver_exit_code.
        """
        answer = self._json("GET", _path(job))
        if not isinstance(answer.get("status"), str):
            raise self._nonsense("a job without status")
        return answer

    def log(self, job: str) -> str:
        """All that a job has printed so far."""
        text = self._json("GET", f"{_path(job)}/logs").get("logs")
        if not isinstance(text, str):
            raise self._nonsense("a log that is no text")
        return text

    def stop(self, job: str) -> None:
        """Sends a job SIGTERM, and SIGKILL when it has not ended within its
        RAY_JOB_STOP_WAIT_TIME_S; does not wait.
        """
        if not self._json("POST", f"{_path(job)}/stop").get("stopped"):
            raise Trouble(
                f"{self.address} did not stop {job}: it has no process that could be told"
            )

    def _json(
        self, method: str, path: str, body: bytes | None = None, limit_s: float = TIMEOUT_S
    ) -> dict[str, Any]:
        raw = self._request(method, path, body, limit_s)
        try:
            answer = json.loads(raw)
        except ValueError:
            raise self._nonsense(_last_line(raw)) from None
        if not isinstance(answer, dict):
            raise self._nonsense(_last_line(raw))
        return answer

    def _request(
        self, method: str, path: str, body: bytes | None = None, limit_s: float = TIMEOUT_S
    ) -> bytes:
        request = urllib.request.Request(self.address + path, body, method=method)
        if body is not None:
            request.add_header(
                "Content-Type",
                "application/json" if method == "POST" else "application/octet-stream",
            )
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=limit_s) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error.code, _last_line(error.read())) from None
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", None) or error
            raise Unreachable(
                f"no job server answers at {self.address}: {reason or type(error).__name__}"
            ) from None

    def _refusal(self, code: int, said: str) -> Exception:
        if code in (401, 403):
            return InputError(
                f"{self.address} rejects the token ({code} {said}): "
                "RAY_AUTH_TOKEN, or the file that "
                f"RAY_AUTH_TOKEN_PATH names, must hold that of the cluster"
            )
        if code == 404 and "does not exist" in said:
            return _Unknown(f"{self.address}: {said}")
        if code == 400:
            return InputError(f"{self.address} refuses: {said}")
        if code >= 500:
            return Trouble(f"{self.address} failed: {said}")
        return self._nonsense(f"{code} {said}")

    def _nonsense(self, what: str) -> InputError:
        return InputError(f"--address: expected a Ray job server at {self.address}, got {what}")


class _Unknown(InputError):
    """No such job, or no such package."""


def _path(job: str) -> str:
    return f"/api/jobs/{urllib.request.quote(job, safe='')}"


def _last_line(raw: bytes) -> str:
    """What an answer comes down to: of a traceback the last line."""
    lines = raw.decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else "an empty answer"


def _token() -> str:
    """The token that Ray itself would send; empty when there is none to send. Raises InputError,
    without the token in it.
    """
    mode, path = os.environ.get("RAY_AUTH_MODE", "").lower(), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if mode == "disabled":
        return ""
    where, token = "RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        file = Path(path) if path else Path.home() / ".ray" / "auth_token"
        where = f"RAY_AUTH_TOKEN_PATH {file}" if path else str(file)
        try:
            token = file.read_text()
        except FileNotFoundError as error:
            if path:
                raise InputError(f"{where}: {error.strerror}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{where}: {getattr(error, 'strerror', None) or 'no text'}") from None
    token = token.strip()
    if not token and mode == "token":
        raise InputError(
            "RAY_AUTH_MODE=token, but there is no token: neither RAY_AUTH_TOKEN "
            f"nor {where} holds one"
        )
    if not re.fullmatch(r"[!-~]*", token):
        raise InputError(f"{where}: expected a token of printable characters in one line")
    return token
