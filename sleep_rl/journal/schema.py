"""Every kind of journal record and every field of it: its type, meaning and unit.

To record something new, add one line here; to see it as a curve, add one line to
`sleep_rl.journal.panels`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sleep_rl.journal.entry import KINDS, kind, metric, needed, shared_fields
from sleep_rl.journal.entry import Entry as Entry
from sleep_rl.journal.entry import InvalidRecord as InvalidRecord
from sleep_rl.journal.entry import Record as Record
from sleep_rl.journal.entry import Unknown as Unknown
from sleep_rl.journal.entry import parse as parse

Number = float | None
"""None: not finite (see `nonfinite`), or nothing to measure."""
Text = str | None
Scores = dict[str, float | None]
"""Column, or form of question -> share of correct answers."""


@shared_fields
class Consolidation(Entry):
    """Fields of every record of a consolidation."""

    day: Text = metric("name of the day")
    night: int | None = metric("number of the night, from 1")
    sender: int | None = metric("memory level that moves on; 0: the context window, -1: dreams")


@shared_fields
class DreamRound(Entry):
    """Fields of every record of dreaming."""

    night: int | None = metric("number of the night, from 1")
    round: int = metric("round of dreaming within the night")


@kind("run")
class Run(Entry):
    """The start of a process that lives the run."""

    config: dict[str, Any] | None = metric("every configuration key, without secrets")
    task: Text = metric("what the model lives through")
    model: Text = metric("base checkpoint")
    started: Any = metric("when the run began")
    commit: Text = metric("git commit of the code")
    seeds: list[Any] | None = metric("random seeds")


@kind("wake")
class Wake(Entry):
    """A day's documents were taken in."""

    day: Text = metric("name of the day")
    step: int = needed("documents taken in")
    loss: Number = metric("cross entropy on the day's documents", "nats/token")
    updates: Number = metric("gradients that joined the chunks", "count")
    seconds: Number = metric("wall-clock time", "s")


@kind("written")
class Written(Consolidation):
    """The teacher has generated the sequences of a consolidation."""

    new: Number = metric("sequences about documents (when a level sends, only read)", "count")
    rehearsed: Number = metric("answers to prompts of past nights", "count")
    prompts: Number = metric("prompts kept so far", "count")
    replay: Number = metric("sequences generated without a document", "count")
    failed: Number = metric("no sample", "count")
    read: Number = metric("sequences about documents of the teacher's own", "count")
    unfinished: Number = metric("left out: no end", "count")
    no_answer: Number = metric("left out: no answer", "count")
    unsure: Number = metric("left out: an answer below generation.min_confidence", "count")
    examples: list[str] | None = metric("a few of the sequences")


@kind("seed")
class SeedStep(Consolidation):
    """One optimizer step of a consolidation."""

    step: int = needed("optimizer step, within its phase")
    steps: Number = metric("optimizer steps of the phase")
    loss: Number = metric("L_KS: divergence and reward together (equations 3 and 6)")
    divergence: Number = metric("teacher against student on what is new", "nats/token")
    divergence_replay: Number = metric("teacher against student on self-replay", "nats/token")
    policy_loss: Number = metric("reward term of L_KS alone")
    reward_mean: Number = metric("mixed reward r of the imitation term (equation 4)")
    reward_std: Number = metric("spread of the reward over completions")
    reward_sem: Number = metric("semantic part of the reward")
    reward_abs: Number = metric("edit-distance part of the reward (equation 5)")
    reward_failed: Number = metric("completions that could not be scored", "count")
    is_ratio_mean: Number = metric("mean importance ratio, learner over sampler")
    is_ratio_max: Number = metric("largest ratio")
    logprob_gap: Number = metric("mean |log-probability of learner - of sampler|", "nats/token")
    grad_norm: Number = metric("gradient norm before clipping")
    lr: Number = metric("learning rate")
    tokens_trained: Number = metric("tokens of the batch", "tokens")
    sequences: Number = metric("sequences of the batch", "count")
    seconds: Number = metric("wall-clock time", "s")


@kind("sample")
class Sample(Consolidation):
    """One call of the rollout workers."""

    round: int = metric("sampling round within the night")
    tokens: Number = metric("tokens sampled", "tokens")
    sequences: Number = metric("sequences sampled", "count")
    failed: Number = metric("requests that gave no sample", "count")
    seconds: Number = metric("wall-clock time", "s")
    tokens_per_second: Number = metric("sampling throughput, all rollout workers", "tokens/s")
    truncated: Number = metric("share of sequences that hit the length limit")
    weights: Text = metric("state sampled from")


@kind("push")
class Push(Entry):
    """A state went from the learners to the rollout workers."""

    name: str = needed("weight state: teacher or student")
    version: int | None = metric("version that was pushed")
    bytes: Number = metric("size of the delta", "bytes")
    tensors: Number = metric("tensors in the delta", "count")
    seconds: Number = metric("time until every rollout worker had verified the version", "s")
    workers: Number = metric("rollout workers that took it", "count")
    probe_gap: Number = metric("largest |log-probability difference| on the probe prompt", "nats")
    pause: Number = metric("longest time a worker stood still to check, copy and verify", "s")


@kind("flow")
class Flow(Consolidation):
    """How long learner and rollouts waited for each other in one round."""

    round: int = metric("round of steps within the night")
    oldest: int | None = metric("oldest version of the student in the round's samples")
    newest: int | None = metric("newest one")
    trained_s: Number = metric("time the learner spent on the round", "s")
    learner_waited_s: Number = metric("time the learner waited for samples and pushes", "s")
    rollouts_waited_s: Number = metric("time the rollouts waited for a new enough version", "s")
    rewards_s: Number = metric("part of the rollouts' time: waiting for rewards", "s")


@kind("night")
class Night(Consolidation):
    """The end of a consolidation."""

    seconds: Number = metric("wall-clock time", "s")
    steps: Number = metric("optimizer steps of the phase")
    loss: Number = metric("last L_KS of the night")
    divergence: Number = metric("last divergence of the night", "nats/token")
    reward_mean: Number = metric("last mean reward of the night")
    tokens_sampled: Number = metric("sampled in the night", "tokens")
    tokens_trained: Number = metric("trained on in the night", "tokens")
    learner_idle: Number = metric("share of the night in which the learner waited between steps")


@kind("evaluate")
class Evaluation(Entry):
    """Accuracies of one method after a night; an empty `row` measured the open book alone."""

    after: str = needed('what the model had lived through: "base", "night 1", ...')
    method: str = needed("sleep, sft or joint")
    row: Scores = needed("accuracy per column (known and every day), closed book", "share correct")
    open_book: Scores | None = metric("with the document in the context", "share correct")
    forms: Scores | None = metric("per deeper form of question, newest day", "share correct")
    n: dict[str, float] | None = metric("questions per column", "count")
    seconds: Number = metric("wall-clock time", "s")


@kind("dream")
class Dream(DreamRound):
    """One dream, and what became of it."""

    night: int | None = needed("number of the night, from 1")
    round: int = needed("round of dreaming within the night")
    task: str = needed("what it is about")
    number: int = needed("of its task, from 0")
    seed: Any = metric("of its sampling")
    expert_seed: Any = metric("seed of the random experts")
    experts: dict[str, Any] | None = metric("level -> expert that its router also activated")
    text: str = needed("what was written")
    logprob: Number = metric("mean log-probability of its tokens", "nats")
    reason: Text = needed("why it was given up; empty: it was not")
    importance: Number = needed("omega, from gradients")
    kept: bool | None = needed("whether it was tried out")
    tau_before: Number = needed("tau of the un-updated model", "0 to 1")
    taus: list[float] = needed("tau of its copies, one per training seed", "0 to 1")
    reward: Number = needed("equation 7", "0 or 1")
    gain: Number = needed("mean tau of its copies over that of the un-updated model")
    held_out: Number = needed("gain on a training seed that the reward never saw")


@kind("dreamed")
class DreamSummary(DreamRound):
    """The end of a round of dreaming."""

    night: int | None = needed("number of the night, from 1")
    round: int = needed("round of dreaming within the night")
    written: Number = needed("dreams", "count")
    kept: Number = needed("tried out", "count")
    rewarded: Number = needed("with reward 1", "count")
    failed: Number = needed("given up, or without a tau", "count")
    tau_before: Number = needed("mean tau of the un-updated model", "0 to 1")
    gain: Number = needed("mean gain of the dreams tried out")
    gain_rewarded: Number = needed("mean gain of the rewarded ones, on the seeds that chose them")
    gain_held_out: Number = needed("mean gain of the rewarded ones, on a seed that did not")


@kind("tried")
class Trial(DreamRound):
    """Dreams were tried out on isolated copies."""

    copies: Number = metric("isolated copies trained", "count")
    dreams: Number = metric("dreams tried out", "count")
    seconds: Number = metric("wall-clock time", "s")


@kind("policy")
class PolicyStep(DreamRound):
    """One optimizer step of the dreaming policy."""

    step: int = metric("optimizer step, within its phase")
    steps: Number = metric("optimizer steps of the phase")
    loss: Number = metric("cross entropy of the policy on accepted dreams", "nats/token")


@kind("saved")
class Saved(Entry):
    """The memory after a night was stored."""

    night: int | None = metric("number of the night, from 1")
    path: Text = metric("its memory, from the run's folder")


@kind("completion")
class Completion(Entry):
    """The answer to one question before or after the nights."""

    when: str = needed("before or after the nights")
    day: str = needed("name of the day")
    question: str = needed("id of the question")
    prompt: Text = metric("what the model continued")
    answer: str = needed("right answer")
    completion: str = needed("what the model wrote")
    score: Number = metric("grade of the completion", "0 to 1")


@kind("baseline")
class BaselineStep(Entry):
    """One optimizer step of a baseline."""

    method: str = needed("sft or joint")
    day: Text = metric("name of the day")
    step: int = needed("optimizer step, within its phase")
    steps: Number = metric("optimizer steps of the phase")
    loss: Number = metric("cross entropy of the baseline", "nats/token")


@kind("rolled_back")
class RolledBack(Entry):
    """The retention gate rejected a night."""

    night: int | None = metric("number of the night, from 1")
    column: Text = metric("column that lost most")
    before: Number = metric("its accuracy", "share correct")
    after: Number = metric("its accuracy after the night", "share correct")
    allowed: Number = metric("evaluate.max_drop", "share correct")
    path: Text = metric("the rejected memory")


@kind("restarted")
class Restarted(Entry):
    """A worker was lost and started anew."""

    worker: Text = metric("one worker, or all of them after a learner was lost")
    reason: Text = metric("how it was lost")


@kind("scaled")
class Scaled(Entry):
    """A rollout worker came or left while the run went on."""

    worker: str = needed("rollout worker that came or went")
    joined: bool = needed("whether it came")
    workers: Number = metric("rollout workers in use now", "count")


@kind("failure")
class Failed(Entry):
    """Something failed, and the run went on without it."""

    where: Text = metric("worker or call that failed")
    reason: Text = metric("why")
    count: Number = metric("how often", "count")


@kind("sink_failed")
class SinkFailed(Entry):
    """A sink raised and was switched off."""

    sink: str = needed("sink that was switched off")
    reason: str = needed("why, in one line")


@kind("torn")
class Torn(Entry):
    """A line that is no record; made by the reader, never written."""

    line: int = metric("number of the line that cannot be read")
    text: Text = metric("its beginning")


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
