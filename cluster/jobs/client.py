"""Client of Ray's job server: submit, query and stop a job.

Beside cluster/runtime/ray_*.py this is the only module that imports ray. It adds four things to
Ray's `JobSubmissionClient`: a timeout for every request, no redirects (another server must not get
the token), errors of one line, and the lookup of the token in `_token` (Ray's own lookup ends the
process when the file cannot be read, and sends no token without RAY_AUTH_MODE).
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
"""Ray's record of a job: status, message, metadata, driver_exit_code, ..."""
ADDRESS = re.compile(r"https?://[A-Za-z0-9._\-\[\]:]+/?")
TIMEOUTS_S = {"GET": 30.0, "POST": 120.0, "PUT": 300.0}  # of one request
MAX_BYTES = 100 << 20  # of a package that Ray's job server accepts
# with these set, Ray's client would use them instead of --address
OTHER_ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
VERSION = "/api/version"
PACKAGES = "/api/packages/"
JOBS = "/api/jobs/"

# "Uploading package ..." would mix with the output of the job
logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)


class Unreachable(InputError):
    """No server answers at the address."""


class MaybeSubmitted(Unreachable):
    """A job was sent, but no response arrived."""


class ServerError(RunError):
    """The job server responded with an error of its own, which may be temporary."""


class JobServer:
    """The job server of a Ray cluster, e.g. at http://HEAD:8265.

    Its methods raise InputError when no server answers, when it rejects the token or the request,
    and when the job does not exist; ServerError when the server has an error of its own.
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
        """Start a job with the id `job`.

        `package`: its working directory as a zip file, uploaded unless the cluster has it already;
        empty: none. Raises MaybeSubmitted when the job was sent but no response arrived, also
        because of Ctrl-C.
        """
        if len(package) > MAX_BYTES:
            raise InputError(
                f"the working directory has {len(package) >> 20} MiB as a zip file, a job server "
                f"accepts {MAX_BYTES >> 20} MiB"
            )
        with tempfile.TemporaryDirectory(prefix="sleep_rl-submit-") as folder:
            if package:
                file = Path(folder) / "package.zip"
                file.write_bytes(package)
                runtime_env = {**runtime_env, "working_dir": str(file)}
            try:
                submitted = self._client.submit_job(
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
            except TypeError:  # Ray's client could not parse the response
                raise self._client.unexpected("a response without submission_id") from None
        if submitted != job:
            raise self._client.unexpected(f"a response about another job than {job}")

    def info(self, job: str) -> JobInfo:
        """Return Ray's record of a job: status, message, metadata and, once it has ended,
        driver_exit_code.
        """
        try:
            return self._client.get_job_info(job)
        except InputError:
            raise
        except (TypeError, ValueError):  # Ray's client could not parse the response
            raise self._client.unexpected("a job without status") from None

    def log(self, job: str) -> str:
        """Return the whole log of a job so far."""
        try:
            text = self._client.get_job_logs(job)
        except TypeError:
            text = None
        if not isinstance(text, str):
            raise self._client.unexpected("a log that is not text")
        return text

    def stop(self, job: str) -> None:
        """Send a job SIGTERM, and SIGKILL when it has not ended within its
        RAY_JOB_STOP_WAIT_TIME_S; does not wait.
        """
        if not self._client.stop_job(job):
            raise ServerError(f"{self.address} did not stop {job}: it has no running process")


class _Client(JobSubmissionClient):
    """Ray's client with a timeout and errors of one line for each request.

    Overrides `_do_request`, a private method through which the client sends every request; if a new
    version of Ray changes that, the tests of timeouts and redirects in
    tests/cluster/jobs/test_submit.py fail.
    """

    job_sent = False

    def __init__(self, address: str, token: str):
        """Connect to the job server at `address`. `token`: empty to send none."""
        self._token = token
        super().__init__(address, headers={"Authorization": f"Bearer {token}"} if token else {})

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> Any:
        self.job_sent = self.job_sent or (method, endpoint) == ("POST", JOBS)
        limit_s = TIMEOUTS_S[method]
        if not self._token:
            # Ray reads RAY_AUTH_MODE once per process, and may have added a token it read earlier
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
            return response  # Ray's client uploads the package then
        if response.status_code != 200:
            raise self._refusal(response.status_code, text)
        if not is_package:
            self._check_json(endpoint, response, text)
        return response

    def _rejection(self, message: str) -> InputError:
        """Return the error for a missing or wrong token. `message`: Ray's; its first line ends with
        the server's response.
        """
        code = 401 if message.startswith("Authentication required") else 403
        response = message.splitlines()[0].partition(": ")[2]
        return InputError(
            f"{self._address} rejects the token ({code} {response}): RAY_AUTH_TOKEN, or the file "
            "that RAY_AUTH_TOKEN_PATH names, must hold that of the cluster"
        )

    def _refusal(self, code: int, text: str) -> Exception:
        """Return the error for a response other than 200."""
        if code == 404 and "does not exist" in text:
            return InputError(f"{self._address}: {text}")
        if code == 400:
            return InputError(f"{self._address} refuses: {text}")
        if code >= 500:
            return ServerError(f"{self._address} failed: {text}")
        return self.unexpected(f"{code} {text}")

    def _check_json(self, endpoint: str, response: Any, text: str) -> None:
        """Raise InputError for a response that is not the JSON of a job server."""
        try:
            content = response.json()
        except ValueError:
            raise self.unexpected(text) from None
        if not isinstance(content, dict):
            raise self.unexpected(text)
        if endpoint == VERSION and not isinstance(content.get("ray_version"), str):
            raise self.unexpected("a response without ray_version")

    def unexpected(self, what: str) -> InputError:
        """Return the error for a response that is not a job server's."""
        return InputError(f"--address: expected a Ray job server at {self._address}, got {what}")


@contextmanager
def _without_environment(names: tuple[str, ...]) -> Iterator[None]:
    saved = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)


def _reason(error: OSError) -> str:
    """Return the last part of an error message of `requests`, which names the cause."""
    cause = error.args[0] if error.args else error
    reason = getattr(cause, "reason", None) or cause
    return str(reason).rpartition(": ")[2] or type(error).__name__


def _summary(text: str) -> str:
    """Return the last line of a response: of a traceback the exception."""
    return last_line(text)[:300] or "an empty response"


def _token() -> str:
    """Return the token to send; empty for none. The lookup is that of Ray.

    RAY_AUTH_TOKEN, else the file that RAY_AUTH_TOKEN_PATH names, else ~/.ray/auth_token. With
    RAY_AUTH_MODE=token a missing token raises InputError; RAY_AUTH_MODE=disabled sends none.
    Messages never contain the token.
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
    """Return (content of the token file, its name for messages); "" when there is no file."""
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
        raise InputError(f"{source}: {getattr(error, 'strerror', None) or 'not text'}") from None
