"""A fake crew without workers or weights, which records calls and refuses invalid ones.

Tests override `check_batch`, `check_requests` or `answer`.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from typing import ClassVar

from sleep_rl.contracts.records import CHECKPOINT, Sample, StepResult
from sleep_rl.driver.cycle import live
from sleep_rl.driver.retention_check import BEFORE
from sleep_rl.journal.journal import Journal, read
from sleep_rl.session.console import Console
from sleep_rl.session.context import RunContext
from sleep_rl.session.resumable import Progress
from sleep_rl.session.stage_files import newest
from sleep_rl.text.codec import PromptCodec
from tests.fakes.configs import changed, toy
from tests.fakes.texts import DAYS, Diary, StableWords, Words

CONFIG = toy(
    task={"days": DAYS},
    model={"chunks": [1, 2], "experts": 2},
    sleep={"steps": 2, "steps_per_round": 1, "batch": 8},
    generation={"samples": 2},
    replay={"samples": 6},
    rehearsal={"samples": 20},
    baselines={"run": []},
)
RESUMABLE = changed(
    CONFIG,
    evaluate={"max_drop": 0.5},
    sleep={"steps": 5, "steps_per_round": 1},
    run={"checkpoint_steps": 2},
)
"""The config of a run that rolls one night back and saves its progress twice in each night."""


class Crew:
    """Learner and rollout workers in one object."""

    step_metrics: ClassVar[dict[str, float]] = {
        "loss": 0.5,
        "divergence": 0.1,
        "tokens_trained": 10.0,
    }

    def __init__(self, texts):
        self.texts = texts
        self.rehearsed = []  # (receiver, state, word) of every rehearsed prompt
        self.learn = self
        self.protocol = []
        self.open = None  # receiver of the open night
        self.versions = {CHECKPOINT: 0}  # state -> version that the rollouts hold
        self.version = 0  # of the last push

    # -- learner
    def wake(self, documents_N):
        self.protocol.append(("wake", len(documents_N)))
        return {"loss": 1.0, "updates": 1.0}

    def open_night(self, receiver, due=(), slot="next"):
        assert self.open is None
        self.open = receiver
        self.protocol.append(("open", receiver, due))

    def commit_night(self):
        assert self.open
        self.protocol.append(("close", self.open))
        self.open = None

    def seed_step(self, batch_N, step, steps):
        self.check_batch(batch_N, step, steps)
        return StepResult(dict(self.step_metrics), [0.1] * len(batch_N))

    def check_batch(self, batch_N, step, steps):
        documents = [r for r in batch_N if r.teacher_T and r.teacher_T != r.prompt_T]
        assert bool(documents) == (self.open == 1)  # only the context window holds documents
        assert all(len(r.prompt_T) < len(r.teacher_T) for r in documents)
        # every consolidation has reading rows, whatever its sender
        read = [r for r in batch_N if "day" in self.texts.text(r.prompt_T).split()]
        assert len(read) == CONFIG.reading.rows > 0
        assert all(r.replay and not r.teacher_T for r in read)

    def save_state(self, tag):
        self.protocol += [("keep", tag)] if tag == BEFORE else []

    def load_state(self, tag):
        self.protocol += [("use", tag)] if tag == BEFORE else []

    def save_memory(self, path):
        self.protocol += [("save", path.rsplit("/", 1)[1])] if "rejected" in path else []

    # -- rollouts and rewards
    def push(self, name, view):
        self.push_async(name, view)()

    def push_async(self, name, view):
        self.version += 1
        version = self.version
        return lambda: self.versions.update({name: version})

    def drop_caches(self):
        self.protocol += (
            [("drop_caches",)] if self.protocol and self.protocol[-1] != ("drop_caches",) else []
        )

    def sample(self, requests_N, name, sampling):
        self.check_requests(requests_N, name, sampling)
        return [self.answer(request, name) for request in requests_N]

    def check_requests(self, requests_N, name, sampling):
        assert name in self.versions

    def logprobs(self, requests_N, name):
        """Every token of every text has the log-probability that `likelihood` says."""
        assert name in self.versions
        return [(self.likelihood(request, name),) * len(request.prompt_T) for request in requests_N]

    def likelihood(self, request, name):
        return -1.0

    def answer(self, request, name):
        """Return the Sample of a request: a generated question, or the word of the day that is
        asked for.
        """
        prompt = self.texts.text(request.prompt_T)
        opener = self.texts.text(self.texts.opener)  # a continued prefix stands behind it
        document = self.texts.text(request.context_T).removesuffix(opener).split()
        if "A :" in prompt:  # a question, or a rehearsed prompt
            words = prompt.split()
            about = words[words.index("was") + 1 : -3] if "was" in words else []
            if about:
                self.rehearsed.append((self.open, name, about[0]))
            return self.sampled(request, name, "fine")
        if document:
            return self.sampled(request, name, f"how was {document[1]} ? A : {document[3]}")
        return self.sampled(request, name, f"old {random.Random(request.seed).random()} ? A : yes")

    def sampled(self, request, name, words, *, reason="stop", logprob=-1.0, version=1):
        """Return the Sample of these words, with equal probability per token, and with eos if it
        stopped.
        """
        ids = self.texts.ids(words) + (self.texts.eos if reason == "stop" else ())
        return sampled_ids(request, name, ids, reason=reason, logprob=logprob, version=version)

    def score(self, pairs_N):
        return [1.0 for _ in pairs_N], {"reward_mean": 1.0}


def sampled_ids(request, name, ids_T, *, reason="stop", logprob=-1.0, version=1):
    return Sample(
        request.prompt_T,
        request.context_T,
        ids_T,
        (logprob,) * len(ids_T),
        reason,
        request.seed,
        name,
        (version,) * len(ids_T),
    )


class RecordingCrew(Crew):
    """A crew that keeps the batches of nights and baseline, and the states that are loaded."""

    def __init__(self, texts):
        super().__init__(texts)
        self.batches = {"night": [], "baseline": []}
        self.loaded = []

    def seed_step(self, batch_N, step, steps):
        if self.open == 1:
            self.batches["night"].append(batch_N)
        return super().seed_step(batch_N, step, steps)

    def sft_step(self, batch_N, step, steps, peak=None):
        self.batches["baseline"].append(batch_N)
        return {"loss": 1.0}

    def load_state(self, tag):
        self.loaded.append(tag)


class Forgetful(Crew):
    """A crew that answers the known correctly until the second night, and again after its
    rollback.
    """

    def answer(self, request, name):
        sample = super().answer(request, name)
        if "old ?" not in self.texts.text(request.prompt_T):
            return sample
        nights = sum(entry[:2] == ("open", 1) for entry in self.protocol)
        lost = nights == 2 and ("use", BEFORE) not in self.protocol
        return replace(self.sampled(request, name, "what" if lost else "yes"), seed=0)


class Killed(BaseException):
    """An exception in place of SIGKILL, which nothing catches."""


class MortalCrew(Forgetful):
    """A crew whose weights are a chain of digests of all its inputs, and which raises Killed at
    call number `at`.
    """

    def __init__(self, texts, at=None):
        super().__init__(texts)
        self.at = at
        self.calls = 0
        self.weights = ""
        self.kept = {}  # tag -> weights
        self.resumed = []  # (step, steps) of the nights that were continued

    def _call(self):
        self.calls += 1
        if self.calls == self.at:
            raise Killed

    def _train(self, *what):
        self._call()
        self.weights = hashlib.sha256(f"{self.weights}{what}".encode()).hexdigest()

    def wake(self, documents_N):
        self._train("wake", documents_N)
        return super().wake(documents_N)

    def check_batch(self, batch_N, step, steps):
        self._train("seed", batch_N, step)
        super().check_batch(batch_N, step, steps)

    def sft_step(self, batch_N, step, steps, peak=None):
        self._train("sft", batch_N, step)
        return {"loss": 1.0}

    def commit_night(self):
        self._train("close")
        super().commit_night()

    def check_requests(self, requests_N, name, sampling):
        self._call()
        super().check_requests(requests_N, name, sampling)

    def save_state(self, tag):
        super().save_state(tag)
        self.kept[tag] = self.weights

    def load_state(self, tag):
        super().load_state(tag)
        self.weights = self.kept[tag]

    def save_checkpoint(self, path):
        self._call()  # may be killed while it writes the checkpoint
        with open(path, "w") as file:
            json.dump([self.weights, self.kept, self.protocol], file)

    def save_progress(self, path):
        self._call()  # may be killed while it writes the progress
        with open(path, "w") as file:
            json.dump([self.weights, self.protocol], file)

    def restore_progress(self, path, step, steps):
        assert self.protocol[-1][0] == "open", "progress is restored after open_night"
        with open(path) as file:
            self.weights, protocol = json.load(file)
        self._restore_protocol(protocol)
        self.versions["student"] = self.version
        self.resumed.append((step, steps))

    def resume(self, path, version):
        with open(path) as file:
            self.weights, self.kept, protocol = json.load(file)
        self._restore_protocol(protocol)
        self.versions = {CHECKPOINT: 0, "teacher": version}
        self.version = version

    def _restore_protocol(self, protocol):
        self.protocol[:] = [
            tuple(tuple(x) if isinstance(x, list) else x for x in entry) for entry in protocol
        ]


def live_life(config, folder, make=Crew, *, task=None, console=None, checkpoints=False):
    """Run a whole life of `task`, the Diary where none is given, with the crew that `make(texts)`
    returns; return (crew, records).

    `console`: what prints the records; `checkpoints`: whether they are written.
    """
    texts = PromptCodec(task or Diary(), Words())
    crew = make(texts)
    journal = Journal(folder / "metrics.jsonl", [console] if console else [])
    run = RunContext(
        crew,
        texts.task,
        texts,
        config,
        journal,
        console or Console(),
        str(folder),
        progress=Progress(str(folder) if checkpoints else None),
    )
    live(run)
    journal.close()
    return crew, read(folder / "metrics.jsonl")


def continue_life(folder, at=None, config=RESUMABLE):
    """Run one process of a life in `folder`, from its newest checkpoint, that is killed at call
    number `at`; return its MortalCrew.
    """
    texts = PromptCodec(Diary(), StableWords())
    return live_from_checkpoint(MortalCrew(texts, at), texts, config, folder).crew


def live_from_checkpoint(crew, texts, config, folder):
    """Run one process of a life in `folder`, from its newest checkpoint if it has one; return its
    RunContext.
    """
    checkpoint = newest(folder)
    journal = Journal(folder / "metrics.jsonl", keep=checkpoint.journal if checkpoint else 0)
    progress = Progress(str(folder))
    run = RunContext(
        crew, texts.task, texts, config, journal, Console(), str(folder), progress=progress
    )
    if checkpoint:
        progress.restore(checkpoint)
        run.index.restore(checkpoint.index)
        crew.resume(checkpoint.learner, checkpoint.version)
    try:
        live(run)
        progress.finish(config)
    finally:
        journal.close()
    return run
