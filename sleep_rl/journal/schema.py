"""All kinds of journal records and their fields: type, meaning and unit.

A new field is one line here; to plot it, add one line to `sleep_rl.journal.panels`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sleep_rl.journal.entry import KINDS, Number, Text, kind, metric, needed, shared_fields
from sleep_rl.journal.entry import Entry as Entry
from sleep_rl.journal.entry import InvalidRecord as InvalidRecord
from sleep_rl.journal.entry import Record as Record
from sleep_rl.journal.entry import Unknown as Unknown
from sleep_rl.journal.entry import parse as parse
from sleep_rl.journal.evaluations import Answers as Answers
from sleep_rl.journal.evaluations import Completion as Completion
from sleep_rl.journal.evaluations import Evaluation as Evaluation
from sleep_rl.journal.evaluations import InContext as InContext
from sleep_rl.journal.evaluations import OldAnswers as OldAnswers


@shared_fields
class ConsolidationEntry(Entry):
    """Fields of every record of a consolidation."""

    day: Text = metric("name of the day")
    night: int | None = metric("number of the night, from 1")
    sender: int | None = metric("sender: memory level; 0: the context window, -1: dreams")


@shared_fields
class DreamingEntry(Entry):
    """Fields of every record of dreaming."""

    night: int | None = needed("number of the night, from 1")
    round: int = needed("round of dreaming within the night")


@kind("run")
class RunStart(Entry):
    """The start of a process of the run."""

    config: dict[str, Any] | None = metric("the configuration, without secrets or unused tasks")
    task: Text = metric("name of the task")
    model: Text = metric("base checkpoint")
    started: Any = metric("start of the run", "unix seconds")
    commit: Text = metric("git commit of the code")
    seeds: list[Any] | None = metric("random seeds")


@kind("wake")
class WakePhase(Entry):
    """The wake phase of a day."""

    day: Text = metric("name of the day")
    step: int = needed("documents of the day")
    loss: Number = metric("cross entropy on the day's documents", "nats/token")
    updates: Number = metric("gradients added to the chunks", "count")
    seconds: Number = metric("wall-clock time", "s")


@kind("written")
class Written(ConsolidationEntry):
    """The sequences of a consolidation that the teacher generated."""

    new: Number = metric("new sequences (for reading rows only, if a level sends)", "count")
    rehearsed: Number = metric("rehearsed sequences: answers to prompts of past nights", "count")
    prompts: Number = metric("prompts in the rehearsal index", "count")
    unconditional: Number = metric("unconditional sequences", "count")
    failed: Number = metric("requests that gave no sample", "count")
    read: Number = metric("sequences about synthetic documents", "count")
    unfinished: Number = metric("dropped: no eos", "count")
    no_answer: Number = metric("dropped: no answer", "count")
    unsure: Number = metric("dropped: probability of the answer below min_confidence", "count")
    kinds: dict[str, list[int]] | None = metric(
        "kind of writing -> [requested, questions kept]", "count"
    )
    dropped: dict[str, int] | None = metric("reason -> texts that were dropped", "count")
    by_phrase: dict[str, int] | None = metric(
        "kind of writing -> questions that a phrase of the document answers, since their own "
        "answer was dropped",
        "count",
    )
    ends: dict[str, int] | None = metric("how answers ended: token, string, cut", "count")
    changed: dict[str, list[int]] | None = metric(
        "changed document -> [prompts of past nights about it, those answered by its new text]",
        "count",
    )
    deleted: dict[str, list[int]] | None = metric(
        "deleted document -> [prompts of past nights about it, those the untouched base answered]",
        "count",
    )
    overlap: Number = metric(
        "evaluation questions among the prompts; in natural language dropped", "count"
    )
    examples: list[str] | None = metric("some of the sequences")


@kind("seed")
class SeedStep(ConsolidationEntry):
    """One optimizer step of a consolidation."""

    step: int = needed("optimizer step, within its phase")
    steps: Number = metric("optimizer steps of the phase")
    loss: Number = metric("L_KS: divergence and imitation term (equation 6)")
    divergence: Number = metric("Div(T||S) on new sequences", "nats/token")
    divergence_replay: Number = metric("Div(T||S) on self-replay and reading rows", "nats/token")
    policy_loss: Number = metric("imitation term of L_KS")
    reward_mean: Number = metric("mean reward r of the imitation term (equation 4)")
    reward_std: Number = metric("standard deviation of the reward over completions")
    reward_sem: Number = metric("semantic part of the reward")
    reward_abs: Number = metric("edit-distance part of the reward (equation 5)")
    reward_failed: Number = metric("completions that could not be scored", "count")
    is_ratio_mean: Number = metric("mean importance ratio, learner over rollout engine")
    is_ratio_max: Number = metric("largest importance ratio")
    logprob_gap: Number = metric(
        "mean |log-probability of learner - of rollout engine|", "nats/token"
    )
    grad_norm: Number = metric("gradient norm before clipping")
    lr: Number = metric("learning rate")
    tokens_trained: Number = metric("tokens of the batch", "tokens")
    sequences: Number = metric("sequences of the batch", "count")
    seconds: Number = metric("wall-clock time", "s")


@kind("sample")
class SamplingCall(ConsolidationEntry):
    """One call of the rollout workers."""

    round: int = metric("sampling round within the night")
    tokens: Number = metric("tokens sampled", "tokens")
    sequences: Number = metric("sequences sampled", "count")
    failed: Number = metric("requests that gave no sample", "count")
    seconds: Number = metric("wall-clock time", "s")
    tokens_per_second: Number = metric("sampling throughput, all rollout workers", "tokens/s")
    truncated: Number = metric("share of sequences that reached the length limit")
    weights: Text = metric("name of the sampled state")


@kind("push")
class Push(Entry):
    """A push of a state from the learners to the rollout workers."""

    name: str = needed("name of the state: teacher or student")
    version: int | None = metric("pushed version")
    bytes: Number = metric("size of the delta", "bytes")
    tensors: Number = metric("tensors in the delta", "count")
    seconds: Number = metric("time until every rollout worker had verified the version", "s")
    workers: Number = metric("rollout workers that loaded it", "count")
    probe_gap: Number = metric("largest |log-probability difference| on the probe prompt", "nats")
    pause: Number = metric("longest pause of a worker to check, copy and verify", "s")


@kind("flow")
class RoundTimes(ConsolidationEntry):
    """The times that learner and rollouts waited for each other in one round."""

    round: int = metric("round of steps within the night")
    oldest: int | None = metric("oldest version of the student in the round's samples")
    newest: int | None = metric("newest version of the student in the round's samples")
    trained_s: Number = metric("training time of the round", "s")
    learner_waited_s: Number = metric("time the learner waited for samples and pushes", "s")
    rollouts_waited_s: Number = metric("time the rollouts waited for a version", "s")
    rewards_s: Number = metric("time the rollouts waited for rewards", "s")


@kind("night")
class Night(ConsolidationEntry):
    """The end of a consolidation."""

    seconds: Number = metric("wall-clock time", "s")
    steps: Number = metric("optimizer steps of the phase")
    loss: Number = metric("L_KS of the last step")
    divergence: Number = metric("divergence of the last step", "nats/token")
    reward_mean: Number = metric("mean reward of the last step")
    tokens_sampled: Number = metric("tokens sampled", "tokens")
    tokens_trained: Number = metric("tokens trained on", "tokens")
    learner_idle: Number = metric("share of the time in which the learner waited between steps")


@kind("dream")
class DreamResult(DreamingEntry):
    """One dream with its results."""

    task: str = needed("id of its task")
    number: int = needed("number within its task, from 0")
    seed: Any = metric("seed of its sampling")
    expert_seed: Any = metric("seed of the random experts")
    experts: dict[str, Any] | None = metric("level -> slot of the random expert")
    text: str = needed("generated text")
    logprob: Number = metric("mean log-probability of its tokens", "nats")
    reason: Text = needed("why it was dropped; empty: it was not")
    importance: Number = needed("omega, from gradients")
    kept: bool | None = needed("whether it was selected for trials")
    tau_before: Number = needed("tau of the un-updated model", "0 to 1")
    taus: list[float] = needed("tau of its copies, one per training seed", "0 to 1")
    reward: Number = needed("reward of equation 7", "0 or 1")
    gain: Number = needed("mean tau of its copies minus that of the un-updated model")
    held_out: Number = needed("gain on a training seed that the reward does not use")


@kind("dreamed")
class DreamSummary(DreamingEntry):
    """The summary of a round of dreaming."""

    written: Number = needed("generated dreams", "count")
    kept: Number = needed("dreams selected for trials", "count")
    rewarded: Number = needed("dreams with reward 1", "count")
    failed: Number = needed("dreams dropped, or without a tau", "count")
    tau_before: Number = needed("mean tau of the un-updated model", "0 to 1")
    gain: Number = needed("mean gain of the dreams tried out")
    gain_rewarded: Number = needed("mean gain of rewarded dreams, on the seeds of the reward")
    gain_held_out: Number = needed("mean gain of rewarded dreams, on the held-out seed")


@kind("tried")
class TrialSummary(DreamingEntry):
    """The trials of a round of dreaming on isolated copies."""

    copies: Number = metric("isolated copies trained", "count")
    dreams: Number = metric("dreams tried out", "count")
    seconds: Number = metric("wall-clock time", "s")


@kind("policy")
class PolicyStep(DreamingEntry):
    """One optimizer step of the dreaming policy."""

    step: int = metric("optimizer step, within its phase")
    steps: Number = metric("optimizer steps of the phase")
    loss: Number = metric("cross entropy of the policy on accepted dreams", "nats/token")


@kind("saved")
class Saved(Entry):
    """The memory of a night was saved."""

    night: int | None = metric("number of the night, from 1")
    path: Text = metric("path of the memory, relative to the run's folder")


@kind("baseline")
class BaselineStep(Entry):
    """One optimizer step of a baseline."""

    method: str = needed("name of the baseline")
    day: Text = metric("name of the day")
    step: int = needed("optimizer step, within its phase")
    steps: Number = metric("optimizer steps of the phase")
    loss: Number = metric("cross entropy of the baseline", "nats/token")


@kind("rolled_back")
class RolledBack(Entry):
    """The retention check rolled a night back."""

    night: int | None = metric("number of the night, from 1")
    column: Text = metric("column with the largest drop")
    before: Number = metric("its accuracy before the night", "share correct")
    after: Number = metric("its accuracy after the night", "share correct")
    allowed: Number = metric("evaluate.max_drop", "share correct")
    path: Text = metric("path of the rejected memory")


@kind("restarted")
class Restarted(Entry):
    """A worker failed and was restarted."""

    worker: Text = metric("name of the worker; all workers, after a learner failed")
    reason: Text = metric("why it failed")


@kind("scaled")
class Scaled(Entry):
    """A rollout worker joined or left during the run."""

    worker: str = needed("name of the rollout worker")
    joined: bool = needed("true: it joined, false: it left")
    workers: Number = metric("rollout workers after the change", "count")


@kind("failure")
class Failed(Entry):
    """Failures of samples, rewards or grades, without which the run continued."""

    where: Text = metric("worker or call that failed")
    reason: Text = metric("why")
    count: Number = metric("number of failures", "count")


@kind("sink_failed")
class SinkFailed(Entry):
    """A sink raised an exception and was switched off."""

    sink: str = needed("name of the sink")
    reason: str = needed("why, in one line")


@kind("torn")
class Torn(Entry):
    """A line that is not a record; created by the reader, never written."""

    line: int = metric("number of the line")
    text: Text = metric("beginning of the line")


@kind("done")
class Done(Entry):
    """The end of the run."""

    seconds: Number = metric("wall-clock time", "s")
    status: Text = metric("ok or failed")
    reason: Text = metric("why it failed")


METRICS: dict[str, dict[str, tuple[str, str]]] = {
    name: {
        f.name: (f.metadata["meaning"], f.metadata["unit"])
        for f in fields(cls)
        if f.name not in ("t", "nonfinite")
    }
    for name, cls in KINDS.items()
}
"""kind -> field -> (meaning, unit)."""
