"""The configuration of wake and sleep: their steps and their data. See sleep_rl.config.schema."""

from __future__ import annotations

from dataclasses import dataclass

from sleep_rl.config.tasks import key


@dataclass(frozen=True)
class Wake:
    """Updates of the memory levels by gradients of the day's documents (equation 2)."""

    lr: float = key(
        1e-3,
        "eta of equation 2, applied to the sum of the gradients of a level's chunk, one "
        "gradient per document. 0 switches wake updates off.",
        low=0,
    )


@dataclass(frozen=True)
class Sleep:
    """Training of one consolidation."""

    steps: int = key(
        100,
        "Optimizer steps per consolidation. When a level sends, the number is multiplied by"
        " the consolidations that it received since it last sent.",
        low=1,
    )
    epochs: float = key(
        0.0,
        "Most epochs over the new sequences of a consolidation, which then has fewer steps than "
        "sleep.steps. 0: no limit.",
        low=0,
    )
    steps_per_round: int = key(
        20,
        "Optimizer steps between two pushes of the student; the samples of one round are "
        "drawn together.",
        low=1,
    )
    lag: int = key(
        0,
        "Versions by which sampling may run ahead of training. 0: sampling and training "
        "take turns.",
        low=0,
    )
    batch: int = key(32, "Sequences per optimizer step, over all learner ranks.", low=1)
    lr: float = key(5e-6, "Peak learning rate of the new expert.", low=0)
    warmup: int = key(
        10,
        "Optimizer steps of linear warm-up, at most half of all; linear decay to zero follows.",
        low=0,
    )
    on_full: str = key(
        "error",
        "What happens when every expert of the receiver is in use: refuse, merge the two "
        "oldest experts and the new one into one, or overwrite the oldest.",
        choices=("error", "merge", "recycle_oldest"),
    )
    expansion: bool = key(
        True, "Unlock a new expert per consolidation. false: train the newest one further."
    )
    reset: bool = key(
        True,
        "Empty the sender after its consolidation: the documents and cached context, or a "
        "level's experts.",
    )


@dataclass(frozen=True)
class Generation:
    """Sequences about a document that the teacher generates."""

    samples: int = key(12, "Sequences per document and night, of a task with a fixed form.", low=1)
    kinds: dict = key(
        {"question": 6, "reversed": 2, "complete": 1, "rephrase": 4, "neighbour": 0.5},
        "Natural language: kinds of writing (names of sleep_rl/writing/kinds, or paths of YAML "
        "files) -> texts per sentence, pair of names or document.",
    )
    min_gain: float = key(
        1.0,
        "Natural language: nats by which the document must raise the log-probability of the"
        " answer; others are dropped.",
    )
    answers: str = key(
        "sentence",
        "Natural language: style of the teacher's short answers: sentence; short (a few words, "
        "after answered examples); or the path of a YAML file with instruction and examples. "
        "Evaluation always asks for a sentence.",
    )
    other_form: float = key(
        0.15,
        "Share of natural-language sequences in the form that model.format is not (raw or chat).",
        low=0,
        high=1,
    )
    temperature: float = key(
        1.0,
        "Sampling temperature of the teacher, except for rehearsed answers "
        "(rehearsal.temperature). The student samples at 1.",
        above=0,
    )
    min_p: float = key(
        0.0,
        "Tokens below this share of the most likely token's probability are not sampled. "
        "Applies to sequences about a document only, which a small model then copies more "
        "faithfully.",
        low=0,
        high=1,
    )
    min_confidence: float = key(
        0.0,
        "Sequences about a document are dropped if the teacher's probability of its own "
        "answer y is lower. 0: none are.",
        low=0,
        high=1,
    )


@dataclass(frozen=True)
class Replay:
    """Self-replay: sequences that the teacher generates without a document."""

    share: float = key(
        0.5,
        "Share of self-replay among the sequences of a batch, also where dreams are learned.",
        low=0,
        high=1,
    )
    samples: int = key(2000, "Unconditional sequences per night (default: task world's).", low=1)


@dataclass(frozen=True)
class Rehearsal:
    """Rehearsed self-replay: the teacher answers prompts that it generated in past nights."""

    share: float = key(
        0.5,
        "Share of self-replay that is rehearsed, i.e. answers prompts of past nights; the "
        "rest is unconditional.",
        low=0,
        high=1,
    )
    instead: str = key(
        "unconditional",
        "What takes the rows of rehearsed sequences in a night without any, as the first: "
        "unconditional self-replay or new sequences.",
        choices=("unconditional", "new"),
    )
    samples: int = key(1000, "Rehearsed answers per night (default: task world's).", low=1)
    prompts: int = key(
        500, "Prompts added to the rehearsal index per night: the most frequent ones.", low=1
    )
    unconditional_prompts: int = key(
        0,
        "Unconditionally generated prompts added to the rehearsal index per night, which "
        "rehearse knowledge older than the first night.",
        low=0,
    )
    min_confidence: float = key(
        0.0,
        "Prompts are not indexed, and rehearsed answers dropped, if the teacher's "
        "probability of its own answer is lower. 0: none are.",
        low=0,
        high=1,
    )
    temperature: float = key(
        1.0,
        "Teacher temperature for rehearsed answers, in sampling and in the target, and for "
        "the target of answers about synthetic documents. Below 1 it sharpens the target "
        "and offsets the blurring of repeated consolidation.",
        low=0.01,
    )
    priority: str = key(
        "divergence",
        "Sampling weights of rehearsed sequences: in proportion to a moving average of the "
        "teacher-student divergence (at rehearsal.temperature), or uniform.",
        choices=("divergence", "uniform"),
    )


@dataclass(frozen=True)
class Reading:
    """Rows in which the student, too, has the document in context, so that in-context reading does
    not degrade.
    """

    rows: int = key(4, "Reading rows per optimizer step, in addition to sleep.batch.", low=0)
    synthetic_documents: int = key(
        0,
        "Synthetic documents generated per night for the reading rows; texts that are no "
        "document are dropped. 0: the day's documents, which the model ends up memorising.",
        low=0,
    )
