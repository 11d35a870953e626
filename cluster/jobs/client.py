"""Ray's job server through Ray's own client: submit, watch and stop a job.

This is the second place that imports ray, beside cluster/runtime/ray_*.py. `JobSubmissionClient`
knows the requests, the packages and the answers. Four things that people see are ours, since the
client does not offer them: a deadline for every request, no redirects (the token is for nobody
else), errors of one line, and the token as `_token` finds it (Ray's own reader ends the process
where the file cannot be read, and sends nothing without RAY_AUTH_MODE).
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.journal.text import last_line

JobInfo = JobDetails
"""What is known about a job: status, message, metadata, driver_exit_code, ..."""
ADDRESS = re.compile(r"https?://[A-Za-z0-9._\-\[\]:]+/?")
TIMEOUTS_S = {"GET": 30.0, "POST": 120.0, "PUT": 300.0}  # of one request
MOST_BYTES = 100 << 20  # what Ray's job server takes in one request
# with these set, Ray's client would go there and not to --address
OTHER_ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
VERSION = "/api/version"
PACKAGES = "/api/packages/"
JOBS = "/api/jobs/"

# "Uploading package ..." would stand between what the job prints
logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)


class Unreachable(InputError):
    """Nobody answers at the address."""


class MaybeSubmitted(Unreachable):
    """A job was sent, and no answer came."""


class ServerTrouble(RunError):
    """The job server answers that it cannot; it may be able to later."""


class JobServer:
    """The job server of a Ray cluster, e.g. at http://HEAD:8265.

    Raises InputError when there is none, when it rejects the token or the request, and when it does
    not know a job; ServerTrouble when it has an error of its own.
    """

    def __init__(self, address: str | None) -> None:
        if not address or not ADDRESS.fullmatch(address):
            raise InputError(
                "--address: the job server of a Ray cluster, e.g. http://HEAD:8265, got "
                f"{address or 'nothing'}"
            )
        self.address = address.rstrip("/")
        token = _token()
        with _without_environment(OTHER_ADDRESSES):
            self._client = _Client(self.address, token)

    def submit(
        self,
        job: str,
        entrypoint: str,
        runtime_env: dict[str, Any],
        metadata: dict[str, str],
        package: bytes = b"",
    ) -> None:
        """Start a job with the id `job`. `package`: its working directory as a zip file, which is
        brought to the cluster if it is not there already; empty: none.

        Raises MaybeSubmitted when the job was sent and no answer came, also because of Ctrl-C.
        """
        if len(package) > MOST_BYTES:
            raise InputError(
                f"the working directory has {len(package) >> 20} MiB as a zip file, a job server "
                f"takes {MOST_BYTES >> 20} MiB"
            )
        with tempfile.TemporaryDirectory(prefix="sleep_rl-submit-") as folder:
            if package:
                file = Path(folder) / "package.zip"
                file.write_bytes(package)
                runtime_env = {**runtime_env, "working_dir": str(file)}
            try:
                answer = self._client.submit_job(
                    submission_id=job,
                    entrypoint=entrypoint,
                    runtime_env=runtime_env,
                    metadata=dict(metadata),
                )
            except (KeyboardInterrupt, Unreachable) as error:
                if not self._client.job_sent:
                    raise
                raise MaybeSubmitted(str(error) or "interrupted") from error
            except InputError:
                raise
            except TypeError:  # of the record that Ray's client makes of the answer
                raise self._client.nonsense("an answer without submission_id") from None
        if answer != job:
            raise self._client.nonsense(f"an answer about another job than {job}")

    def info(self, job: str) -> JobInfo:
        """Return what is known about a job: status, message, metadata and, once it has ended,
        driver_exit_code.
        """
        try:
            return self._client.get_job_info(job)
        except InputError:
            raise
        except (TypeError, ValueError):  # of the record that Ray's client makes of the answer
            raise self._client.nonsense("a job without status") from None

    def log(self, job: str) -> str:
        """Return all that a job has printed so far."""
        try:
            text = self._client.get_job_logs(job)
        except TypeError:
            text = None
        if not isinstance(text, str):
            raise self._client.nonsense("a log that is no text")
        return text

    def stop(self, job: str) -> None:
        """Send a job SIGTERM, and SIGKILL when it has not ended within its
        RAY_JOB_STOP_WAIT_TIME_S; does not wait.
        """
        if not self._client.stop_job(job):
            raise ServerTrouble(
                f"{self.address} did not stop {job}: it has no process that could be told"
            )


class _Client(JobSubmissionClient):
    """Ray's client with a deadline and our errors on each request.

    `_do_request` is private, and the only method through which the client sends anything; if a new
    version of Ray goes another way, the tests of deadlines and redirects in
    tests/cluster/test_submit.py fail.
    """

    job_sent = False

    def __init__(self, address: str, token: str):
        """`token`: empty to send none."""
        self._token = token
        super().__init__(address, headers={"Authorization": f"Bearer {token}"} if token else {})

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
        self.job_sent = self.job_sent or (method, endpoint) == ("POST", JOBS)
        limit_s = TIMEOUTS_S[method]
        if not self._token:
            # Ray reads RAY_AUTH_MODE once in a process, and would send what it read then.
            self._headers.pop("authorization", None)
        try:
            response = super()._do_request(
                method, endpoint, timeout=limit_s, allow_redirects=False, **kwargs
            )
        except AuthenticationError as error:
            raise self._rejection(str(error)) from None
        except OSError as error:  # what `requests` raises
            raise Unreachable(
                f"no job server answers at {self._address}: {_reason(error)}"
            ) from None
        text = _summary(response.text)
        is_package = endpoint.startswith(PACKAGES)
        if response.status_code == 404 and is_package:
            return response  # it is to be uploaded
        if response.status_code != 200:
            raise self._refusal(response.status_code, text)
        if not is_package:
            self._check_json(endpoint, response, text)
        return response

    def _rejection(self, message: str) -> InputError:
        """Return the error for a token that is missing or wrong. `message`: Ray's, in which the
        first line ends with the server's answer.
        """
        code = 401 if message.startswith("Authentication required") else 403
        answer = message.splitlines()[0].partition(": ")[2]
        return InputError(
            f"{self._address} rejects the token ({code} {answer}): RAY_AUTH_TOKEN, or the file "
            "that RAY_AUTH_TOKEN_PATH names, must hold that of the cluster"
        )

    def _refusal(self, code: int, text: str) -> Exception:
        """Return the error for an answer other than 200."""
        if code == 404 and "does not exist" in text:
            return InputError(f"{self._address}: {text}")
        if code == 400:
            return InputError(f"{self._address} refuses: {text}")
        if code >= 500:
            return ServerTrouble(f"{self._address} failed: {text}")
        return self.nonsense(f"{code} {text}")

    def _check_json(self, endpoint: str, response: Any, text: str) -> None:
        try:
            answer = response.json()
        except ValueError:
            raise self.nonsense(text) from None
        if not isinstance(answer, dict):
            raise self.nonsense(text)
        if endpoint == VERSION and not isinstance(answer.get("ray_version"), str):
            raise self.nonsense("an answer without ray_version")

    def nonsense(self, what: str) -> InputError:
        """Return the error for an answer that no job server gives."""
        return InputError(f"--address: expected a Ray job server at {self._address}, got {what}")


@contextmanager
def _without_environment(names: tuple[str, ...]) -> Iterator[None]:
    saved = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)


def _reason(error: OSError) -> str:
    """Return the last part of a message of `requests`, which says why."""
    cause = error.args[0] if error.args else error
    reason = getattr(cause, "reason", None) or cause
    return str(reason).rpartition(": ")[2] or type(error).__name__


def _summary(text: str) -> str:
    """Return what an answer comes down to: of a traceback the last line."""
    return last_line(text)[:300] or "an empty answer"


def _token() -> str:
    """Return the token that Ray itself would send; empty when there is none to send.

    RAY_AUTH_TOKEN, else the file that RAY_AUTH_TOKEN_PATH names, else ~/.ray/auth_token;
    RAY_AUTH_MODE=token makes one a must, RAY_AUTH_MODE=disabled sends none. Raises InputError,
    without the token in it.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return ""
    source = "RAY_AUTH_TOKEN"
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        token, source = _token_file()
    token = token.strip()
    if not token and mode == "token":
        raise InputError(
            "RAY_AUTH_MODE=token, but there is no token: neither RAY_AUTH_TOKEN nor "
            f"{source} holds one"
        )
    if not re.fullmatch(r"[!-~]*", token):
        raise InputError(f"{source}: expected a token of printable characters in one line")
    return token


def _token_file() -> tuple[str, str]:
    """Return (what the token's file holds, its name for messages); nothing where there is none."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(path) if path else Path.home() / ".ray" / "auth_token"
    source = f"RAY_AUTH_TOKEN_PATH {file}" if path else str(file)
    try:
        return file.read_text(), source
    except FileNotFoundError as error:
        if path:
            raise InputError(f"{source}: {error.strerror}") from None
        return "", source
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: {getattr(error, 'strerror', None) or 'no text'}") from None
