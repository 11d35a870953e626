"""The configuration of the method: what wake, sleep and dream compute. See sleep_rl.config.schema."""

from __future__ import annotations

from dataclasses import dataclass, field

from sleep_rl.config.tasks import key


@dataclass(frozen=True)
class Wake:
    lr: float = key(
        1e-3,
        "eta of equation 2; a level's gradients are summed over its chunk, one "
        "per document; 0 switches "
        "wake updates off",
        low=0,
    )


@dataclass(frozen=True)
class Sleep:
    steps: int = key(
        100,
        "optimizer steps of a consolidation; a level's takes as many for each "
        "that came into it since it "
        "last moved",
        low=1,
    )
    steps_per_round: int = key(
        20, "steps between two pushes of the student, sampled for at once", low=1
    )
    lag: int = key(
        0, "versions by which the rollouts may run ahead of the learner; 0: they take turns", low=0
    )
    batch: int = key(32, "sequences per optimizer step, over all learner ranks", low=1)
    lr: float = key(5e-6, "peak learning rate of the new expert", low=0)
    warmup: int = key(10, "steps of linear warm-up; afterwards linear decay to zero", low=0)
    on_full: str = key(
        "error",
        "when every expert of the receiving level is in use: refuse, "
        "merge the two oldest and the "
        "night into one, or give up the "
        "oldest",
        choices=("error", "merge", "recycle_oldest"),
    )
    expansion: bool = key(True, "unlock a new expert each night; false trains the newest one on")
    reset: bool = key(
        True,
        "drop the sender after its consolidation: documents and cached "
        "context, or a level's experts",
    )


@dataclass(frozen=True)
class Generation:
    """What the teacher writes about a document."""

    samples: int = key(12, "sequences that the teacher writes per document and night", low=1)
    temperature: float = key(
        1.0,
        "sampling temperature of the teacher's writing, rehearsed "
        "answers aside; the student samples "
        "with 1",
        above=0,
    )
    min_p: float = key(
        0.0,
        "writing about a document: tokens less likely than this share of the "
        "likeliest are not "
        "sampled; a small model copies more faithfully so (from nothing it "
        "is to write all sorts)",
        low=0,
        high=1,
    )
    min_confidence: float = key(
        0.0,
        "what the teacher wrote about a document is left out where it "
        "gave its own answer y less "
        "than this probability; 0: nothing is",
        low=0,
        high=1,
    )


@dataclass(frozen=True)
class Replay:
    """Self-replay: sequences that the teacher writes without a document."""

    share: float = key(
        0.5, "share of sequences written without a document (self-replay)", low=0, high=1
    )
    samples: int = key(
        2000, "sequences that the teacher writes per night without any document", low=1
    )


@dataclass(frozen=True)
class Rehearsal:
    """The part of self-replay that answers prompts of past nights."""

    share: float = key(
        0.5,
        "share of self-replay that answers the prompts which the teacher "
        "wrote in past nights; the "
        "rest is written from nothing",
        low=0,
        high=1,
    )
    samples: int = key(1000, "answers to such prompts that the teacher writes per night", low=1)
    prompts: int = key(500, "prompts kept per night: those that were written most often", low=1)
    unconditional_prompts: int = key(
        0,
        "the same for prompts that were written without a document: what "
        "was known long ago is then "
        "rehearsed, too, where the student lacks it",
        low=0,
    )
    min_confidence: float = key(
        0.0,
        "a prompt is not kept, and an answer to one left out, "
        "where the teacher gave its answer "
        "less than this probability; 0: none is",
        low=0,
        high=1,
    )
    temperature: float = key(
        1.0,
        "temperature of the teacher where it answers such "
        "prompts, both to sample the answers "
        "and to learn from them; and of what is learned of "
        "its answers about texts of its own "
        "(reading.synthetic_documents). Below 1 what it is fairly sure of "
        "becomes surer again, which many "
        "consolidations would wear down",
        low=0.01,
    )
    priority: str = key(
        "divergence",
        "which prompts: those where the student still differs "
        "from the teacher (at "
        "rehearsal.temperature), or all alike",
        choices=("divergence", "uniform"),
    )


@dataclass(frozen=True)
class Reading:
    """Rows on which the student, too, has the document in context."""

    rows: int = key(
        4,
        "rows per step beside the batch on which the student has the document, "
        "too: it goes on reading",
        low=0,
    )
    synthetic_documents: int = key(
        0,
        "texts that the teacher begins from nothing per night for "
        "these rows; those that are documents, "
        "and what it writes about them, are read instead of the day's, "
        "which it comes to know by heart",
        low=0,
    )


@dataclass(frozen=True)
class Imitation:
    """How the student is rewarded for continuing the teacher's sequences (equations 4 to 6)."""

    group_size: int = key(4, "student completions per prefix (group-relative advantage)", low=2)
    prefix_min: float = key(
        0.1, "shortest imitation prefix, as a share of the teacher's sequence", low=0, high=1
    )
    prefix_max: float = key(
        0.7, "longest imitation prefix, as a share of the teacher's sequence", low=0, high=1
    )
    scale_advantage: bool = key(
        True, "divide the advantage by the group's standard deviation (GRPO)"
    )
    importance_cap: float = key(
        2.0, "cap of the truncated importance weight of stale samples", above=0
    )


@dataclass(frozen=True)
class Objective:
    """The loss L_KS (equations 3 and 6)."""

    on_policy: float = key(
        1.0,
        "lambda of equation 3: share of divergence rows on student samples; equation 6 has 1",
        low=0,
        high=1,
    )
    alpha: float = key(
        0.5,
        "weight of the divergence in equation 6; 1 - alpha weighs the "
        "imitation reward; 1 switches "
        "imitation off",
        low=0,
        high=1,
    )
    divergence: str = key(
        "forward_kl",
        "Div(T||S) over the full vocabulary",
        choices=("forward_kl", "reverse_kl", "jsd"),
    )
    beta: float = key(0.5, "beta of the generalised JSD, inside (0, 1)", low=0, high=1)
    prompt_weight: float = key(
        0.2,
        "weight of the divergence on a written sequence's own prompt "
        "x (1 on its answer y); "
        "above 0, so that what was written can be written "
        "again",
        low=0,
        high=1,
    )


@dataclass(frozen=True)
class Copies:
    """Isolated copies, on which dreams are tried out."""

    lr: float = key(1e-3, "peak learning rate of an isolated copy", above=0)
    epochs: int = key(10, "passes of an isolated copy over its dream's texts", low=1)
    rank: int = key(32, "LoRA rank of an isolated copy", choices=(8, 16, 32, 64, 128, 256))
    alpha: float = key(64, "LoRA alpha of an isolated copy", above=0)
    seeds: int = key(
        3,
        "training seeds whose mean tau is rewarded; one more is trained that the reward never sees",
        low=1,
    )
    margin: float = key(
        0.0, "by how much that mean must beat the un-updated model's tau", low=0, high=1
    )


@dataclass(frozen=True)
class Policy:
    """The dreaming policy."""

    init: str = key(
        "previous",
        "where each round's dreaming policy starts: the last round's, or the model itself",
        choices=("previous", "base"),
    )
    lr: float = key(3e-4, "peak learning rate of the dreaming policy's expert", low=0)
    epochs: int = key(
        2,
        "passes of the policy over the accepted dreams; 0: dreams are always the model's own",
        low=0,
    )
    batch: int = key(10, "dreams per optimizer step of the policy", low=1)


@dataclass(frozen=True)
class Dream:
    rounds: int = key(
        0,
        "rounds of dreaming behind each night (paper.md section 4); 0 switches dreaming off",
        low=0,
    )
    tasks: int = key(12, "tasks (C, tau) that are dreamed about in a round", low=1)
    curriculum: str = key(
        "weakest",
        "which: drawn in proportion to what the retention matrix "
        "lacks (the newest day, not "
        "yet in it, lacks everything), of the newest day only, or "
        "all alike",
        choices=("weakest", "newest", "uniform"),
    )
    dreams_per_task: int = key(15, "dreams written per task", low=1)
    keep_top: int = key(4, "dreams of a task that are kept for their importance", low=0)
    keep_random: int = key(1, "dreams of a task that are kept at random beside them", low=0)
    importance: str = key(
        "inner",
        "omega: inner product of a dream's gradient with that of C's "
        "loss, its norm, or the inner "
        "product less what was chosen already (GREATS); random: no "
        "selection",
        choices=("inner", "norm", "greedy", "random"),
    )
    novelty: bool = key(
        True,
        "each router also activates one random expert while dreams are "
        "written; seen only where "
        "model.top_k is below the number of unlocked experts",
    )
    temperature: float = key(1.0, "sampling temperature of dreams", above=0)
    accept: str = key(
        "all_positive",
        "rewarded dreams that are learned: all, or the best one of each task",
        choices=("all_positive", "best_of_k"),
    )
    steps: int = key(
        200, "optimizer steps in which the model itself learns the night's accepted dreams", low=1
    )
    replay_share: float = key(0.5, "share of self-replay beside them", low=0, high=1)
    copies: Copies = field(default_factory=Copies)
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True)
class Checks:
    """What ends a run because sampler and learner disagree."""

    logprob_gap: float = key(
        1.0,
        "largest mean log-probability difference between sampler and "
        "learner, at the first step "
        "behind a push, nats per token; a larger one ends the run",
        above=0,
    )
    probe: float | None = key(
        None,
        "largest log-probability difference on the probe "
        "prompt after a push, "
        "nats; null: 1e-3 in float32, 0.5 in "
        "bfloat16",
        above=0,
    )


@dataclass(frozen=True)
class RewardConfig:
    gamma: float | None = key(
        None,
        "weight of the semantic reward in equation 4; null: 0.5 with a reward model, else 0",
        low=0,
        high=1,
    )
    z0: float = key(
        0.5,
        "equation 5 cut-off: below 1 a share of the longer sequence, from 1 on a token count",
        above=0,
    )
    semantic: str = key(
        "none",
        "frozen reward model, or a class of your own",
        choices=("none", "encoder", "judge", "custom"),
    )
    target: str | None = key(
        None,
        "custom: module:Class or path/to/file.py:Class, which every "
        "node can import; its `score` takes "
        "a list of (student's text, teacher's text) and returns a "
        "number from 0 to 1 for each",
    )
    options: dict = key({}, "custom: keyword arguments of that class")
    model: str | None = key(
        None, "path or hub name of the reward model; null: the base model itself"
    )
    threshold: float = key(
        0.9, "encoder: least cosine similarity that counts as the same meaning", low=-1, high=1
    )
    template: str = key(
        "First: {student}\nSecond: {teacher}\nSame meaning (yes or no):",
        "judge: the prompt, with {student} and {teacher}; yes or no is read from the next token",
    )
    timeout_s: float = key(
        30.0, "seconds a reward call may take; a late one is a failed sample", above=0
    )
    workers: int = key(1, "reward actors (used with a semantic reward)", low=1)
    cpus: float = key(0.0, "CPUs per reward actor; 0 shares the node's cores", low=0)
    gpus: float = key(0.0, "GPUs per reward actor", low=0)
