"""The context of a run that every stage gets: workers, task, config, journal and console."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sleep_rl.config.schema import Config
from sleep_rl.contracts.errors import Failure
from sleep_rl.contracts.records import Ids, Request, Sample, Sampling
from sleep_rl.contracts.roles import Crew, Task
from sleep_rl.journal.journal import Journal
from sleep_rl.session.console import Console
from sleep_rl.session.rehearsal_index import RehearsalIndex
from sleep_rl.session.resumable import Progress
from sleep_rl.text.codec import PromptCodec


@dataclass(frozen=True)
class RunContext:
    """The parts of one run; its results are written to `folder`."""

    crew: Crew
    task: Task
    codec: PromptCodec
    config: Config
    journal: Journal
    console: Console
    folder: str
    context_tokens: int = 4096  # that an engine reads and writes in one request
    index: RehearsalIndex = field(default_factory=RehearsalIndex)
    progress: Progress = field(default_factory=Progress)
    drift_texts: Sequence[list] = ()  # of the untouched base, as drift.sample_texts returns them

    @contextmanager
    def timed(self, kind: str, **values: Any) -> Iterator[dict]:
        """Journal one record of `kind`: `values`, what the block adds to it, and its seconds."""
        record = dict(values)
        started = time.monotonic()
        yield record
        self.journal.log(kind, **record, seconds=time.monotonic() - started)

    def sample(
        self,
        requests_N: list[Request],
        name: str,
        tokens: int,
        temperature: float,
        min_p: float = 0.0,
        stop: Ids = (),
        plain: bool = False,
        **where: Any,
    ) -> list[Sample | Failure]:
        """Sample from the current version of state `name`, and journal counts and failures.

        `tokens`: longest completion; `stop`: tokens besides eos that end it, and, unless `plain`,
        so do the strings of task.stop; `where`: fields of the journal record. Returns one Sample or
        Failure per request, in order.
        """
        if not requests_N:
            return []
        with self.timed("sample", **where) as record:
            began = time.monotonic()
            strings = () if plain else self.codec.stop
            how = Sampling(tokens, temperature, self.codec.ends + stop, min_p, strings)
            samples = self.crew.sample(requests_N, name, how)
            done = [s for s in samples if not isinstance(s, Failure)]
            produced = sum(len(s.completion_T) for s in done)
            record.update(
                weights=name,
                tokens=produced,
                sequences=len(done),
                failed=len(samples) - len(done),
                tokens_per_second=produced / max(time.monotonic() - began, 1e-9),
                truncated=sum(s.finish_reason == "length" for s in done) / max(len(done), 1),
            )
        self.count_failures("sample", samples)
        return samples

    def count_failures(self, where: str, results: list) -> None:
        """Journal the failures among `results`, one record per reason."""
        reasons = [r.reason for r in results if isinstance(r, Failure)]
        for reason in sorted(set(reasons)):
            self.journal.log("failure", where=where, reason=reason, count=reasons.count(reason))

    def save(self, night: int) -> None:
        """Save the memory as <folder>/memory/night-<n>. Raises RunError if it cannot be written."""
        path = os.path.join("memory", f"night-{night}")
        self.crew.learn.save_memory(os.path.join(self.folder, path))
        self.journal.log("saved", night=night, path=path)
