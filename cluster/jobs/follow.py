"""Follow a job of a Ray cluster: print its log until it ends. The job belongs to the cluster; who
follows it may come and go.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cluster.jobs.client import JobInfo, JobServer, ServerTrouble, Unreachable
from sleep_rl.contracts.errors import InputError, RunError
from sleep_rl.journal.text import clock

PATIENCE_S = 300.0  # how long a job server may be away while a job is followed
POLL_S = 1.0
LONGEST_POLL_S = 15.0
# the exit code of a run whose input cannot work: going on with it would end the same way
BAD_INPUT = 2
INTERRUPTED = 130


def follow_job(server: JobServer, job: str, greeting: str = "") -> int:
    """Print a greeting and the job's log to its end; return the run's exit code.

    Ctrl-C, a lost terminal and a closed pipe end the following and leave the job: 130. Raises
    RunError for a job that was stopped, or whose server stays away.
    """
    if hasattr(sys.stdout, "reconfigure"):
        # a run's tables have lines that LANG=C cannot print
        sys.stdout.reconfigure(errors="replace")
    try:
        with _hangup_interrupts():
            print(greeting, end="", flush=True)
            info = _Tail(server, job).print_to_end()
    except (KeyboardInterrupt, BrokenPipeError) as error:
        if isinstance(error, BrokenPipeError):
            # or Python would flush into it again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with suppress(OSError):  # the terminal may be gone
            line = f"\n{job}: goes on without you; {hints(server, job)}"
            print(line, file=sys.stderr, flush=True)
        return INTERRUPTED
    return _exit_code(server, job, info)


def _exit_code(server: JobServer, job: str, info: JobInfo) -> int:
    """Return the exit code of a run that has ended, and say how to go on with it."""
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        raise RunError(f"{job}: was stopped; {resume_hint(info, server)}")
    code = info.driver_exit_code
    if not code:
        reasons = str(info.message).strip().splitlines() or ["no reason given"]
        raise RunError(f"{job}: failed: {reasons[-1]}")
    hint = f"; {resume_hint(info, server)}" if code != BAD_INPUT else ""
    line = f"sleep-rl: {job}: failed with exit code {code}; what it printed last says why{hint}"
    print(line, file=sys.stderr, flush=True)
    return code if 0 < code < 256 else 1


class _Tail:
    """Prints what a job writes, by polling: unlike `tail_job_logs` of Ray's client, which a lost
    connection ends, it goes on where it was when the server is back.
    """

    def __init__(self, server: JobServer, job: str):
        self._server = server
        self._job = job
        self._printed = 0  # characters of the log
        self._message = ""  # why the job is pending, as last printed
        self._away_since = 0.0  # when the server was first not reached; 0: it was reached

    def print_to_end(self) -> JobInfo:
        """Print the log until the job has ended; return what is known about it then."""
        info = self._server.info(self._job)
        while True:
            started = time.monotonic()
            try:
                info = self._server.info(
                    self._job
                )  # before the log: read after the end it is whole
                log = self._server.log(self._job)
            except (Unreachable, ServerTrouble) as error:
                if self._is_lost(error, started, ended=info.status.is_terminal()):
                    return info
            else:
                self._away_since = 0.0
                self._print(log, info)
                if info.status.is_terminal():
                    return info
            # A long log costs the server little of its time; a busy one is not asked again at once.
            took_s = time.monotonic() - started
            time.sleep(min(max(POLL_S, 10 * took_s), LONGEST_POLL_S))

    def _print(self, log: str, info: JobInfo) -> None:
        print(log[self._printed :], end="", flush=True)
        self._printed = len(log)
        if info.status == "PENDING" and info.message and info.message != self._message:
            self._message = info.message
            line = f"{self._job}: {' '.join(info.message.split())}"
            print(line, file=sys.stderr, flush=True)

    def _is_lost(self, error: InputError | RunError, now: float, ended: bool) -> bool:
        """Return whether nothing more is to come of a job that has ended. Raises RunError when the
        server of one that has not is away for too long.
        """
        if not self._away_since:
            self._away_since = now
            line = f"{self._job}: {error}; trying again for {clock(PATIENCE_S)}"
            print(line, file=sys.stderr, flush=True)
        if now - self._away_since <= PATIENCE_S:
            return False
        if ended:
            return True
        hint = hints(self._server, self._job)
        raise RunError(f"{self._job}: {error}, since {clock(PATIENCE_S)}; {hint}") from error


@contextmanager
def _hangup_interrupts() -> Iterator[None]:
    """Let a lost terminal end the following like Ctrl-C; under `nohup` it goes on."""

    def hang_up(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGHUP)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, hang_up)
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
    """Return the command that goes on with a job's run."""
    run = (info.metadata or {}).get("run")
    if not run:
        return "it was not submitted by sleep-rl submit"
    command = f"sleep-rl submit --resume {shlex.quote(run)} --address {server.address}"
    return f"{command} goes on with its run"
