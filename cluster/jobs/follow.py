"""Follow a job of a Ray cluster: print its log until it ends. The job does not depend on the
process that follows it.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cluster.jobs.client import JobInfo, JobServer, ServerError, Unreachable
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.journal.text import clock

RETRY_S = 300.0  # how long requests are retried while the job server does not answer
POLL_S = 1.0
MAX_POLL_S = 15.0
# the exit code of a run that raised InputError: resuming it would fail the same way
BAD_INPUT = 2
INTERRUPTED = 130


def follow_job(server: JobServer, job: str, greeting: str = "") -> int:
    """Print `greeting` and the job's log until the job ends; return the run's exit code.

    Ctrl-C, SIGHUP and a closed pipe end the following, not the job; 130 is returned. Raises
    RunError for a job that was stopped, and when its server does not answer for RETRY_S.
    """
    if hasattr(sys.stdout, "reconfigure"):
        # a run's tables have characters that LANG=C cannot encode
        sys.stdout.reconfigure(errors="replace")
    try:
        with _sighup_as_interrupt():
            print(greeting, end="", flush=True)
            info = _Tail(server, job).print_to_end()
    except (KeyboardInterrupt, BrokenPipeError) as error:
        if isinstance(error, BrokenPipeError):
            # otherwise Python flushes into the closed pipe at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with suppress(OSError):  # the terminal may be gone
            line = f"\n{job}: keeps running on the cluster; {hints(server, job)}"
            print(line, file=sys.stderr, flush=True)
        return INTERRUPTED
    return _exit_code(server, job, info)


def _exit_code(server: JobServer, job: str, info: JobInfo) -> int:
    """Return the exit code of a run that has ended; print how to resume it when it failed."""
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        raise RunError(f"{job}: was stopped; {resume_hint(info, server)}")
    code = info.driver_exit_code
    if not code:
        reasons = str(info.message).strip().splitlines() or ["no reason given"]
        raise RunError(f"{job}: failed: {reasons[-1]}")
    hint = f"; {resume_hint(info, server)}" if code != BAD_INPUT else ""
    line = f"sleep-rl: {job}: failed with exit code {code}; see the end of its log{hint}"
    print(line, file=sys.stderr, flush=True)
    return code if 0 < code < 256 else 1


class _Tail:
    """Prints a job's log by polling. Unlike `tail_job_logs` of Ray's client it survives a lost
    connection: it continues where it was once the server answers again.
    """

    def __init__(self, server: JobServer, job: str):
        self._server = server
        self._job = job
        self._printed = 0  # characters of the log
        self._message = ""  # why the job is pending, as last printed
        self._unreachable_since = 0.0  # time of the first failed request; 0: the last one succeeded

    def print_to_end(self) -> JobInfo:
        """Print the log until the job has ended; return its record."""
        info = self._server.info(self._job)
        while True:
            started = time.monotonic()
            try:
                # the record before the log: a log that is read after the end is complete
                info = self._server.info(self._job)
                log = self._server.log(self._job)
            except (Unreachable, ServerError) as error:
                if self._is_over(error, started, ended=info.status.is_terminal()):
                    return info
            else:
                self._unreachable_since = 0.0
                self._print(log, info)
                if info.status.is_terminal():
                    return info
            # polling takes at most a tenth of the server's time
            took_s = time.monotonic() - started
            time.sleep(min(max(POLL_S, 10 * took_s), MAX_POLL_S))

    def _print(self, log: str, info: JobInfo) -> None:
        print(log[self._printed :], end="", flush=True)
        self._printed = len(log)
        if info.status == "PENDING" and info.message and info.message != self._message:
            self._message = info.message
            line = f"{self._job}: {' '.join(info.message.split())}"
            print(line, file=sys.stderr, flush=True)

    def _is_over(self, error: InputError | RunError, now: float, ended: bool) -> bool:
        """Return False to retry after a failed request, True when RETRY_S have passed and the job
        has `ended`. Raises RunError when they have passed and it has not.
        """
        if not self._unreachable_since:
            self._unreachable_since = now
            line = f"{self._job}: {error}; retrying for {clock(RETRY_S)}"
            print(line, file=sys.stderr, flush=True)
        if now - self._unreachable_since <= RETRY_S:
            return False
        if ended:
            return True
        hint = hints(self._server, self._job)
        raise RunError(f"{self._job}: {error}, for {clock(RETRY_S)}; {hint}") from error


@contextmanager
def _sighup_as_interrupt() -> Iterator[None]:
    """Treat SIGHUP as Ctrl-C within the block, unless it is ignored (`nohup`)."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGHUP)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def hints(server: JobServer, job: str) -> str:
    """Return the commands that follow and stop a job."""
    return (
        f"sleep-rl submit --follow {job} --address {server.address} shows its log, "
        f"sleep-rl submit --stop {job} --address {server.address} stops it"
    )


def resume_hint(info: JobInfo, server: JobServer) -> str:
    """Return the command that resumes a job's run."""
    run = (info.metadata or {}).get("run")
    if not run:
        return "it was not submitted by sleep-rl submit"
    command = f"sleep-rl submit --resume {shlex.quote(run)} --address {server.address}"
    return f"{command} resumes its run"
