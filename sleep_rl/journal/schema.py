"""Every kind of record that a run's journal may hold, and every field of it."""

from __future__ import annotations

from typing import Any

_DAY = ("name of the day", "")
_NIGHT = ("number of the night, from 1", "")
_SENDER = ("memory level that moves on; 0: the context window, -1: dreams", "")
_SECONDS = ("wall-clock time", "s")
_ROUND = ("round of dreaming within the night", "")
_STEP, _STEPS = ("optimizer step, within its phase", ""), ("optimizer steps of the phase", "")

METRICS: dict[str, dict[str, tuple[str, str]]] = {
    "run": {
        "config": ("every configuration key, without secrets", ""),
        "task": ("what the model lives through", ""),
        "model": ("base checkpoint", ""),
        "started": ("when the run began", ""),
        "commit": ("git commit of the code", ""),
        "seeds": ("random seeds", ""),
    },
    "wake": {
        "day": _DAY,
        "step": _STEP,
        "loss": ("cross entropy on the day's documents", "nats/token"),
        "updates": ("gradients that joined the chunks", "count"),
        "seconds": _SECONDS,
    },
    "written": {
        "day": _DAY,
        "night": _NIGHT,
        "sender": _SENDER,
        "new": ("sequences about documents (when a level sends, only read)", "count"),
        "rehearsed": ("answers to prompts of past nights", "count"),
        "prompts": ("prompts kept so far", "count"),
        "replay": ("sequences of D written without a document", "count"),
        "failed": ("no sample", "count"),
        "read": ("sequences about documents of the teacher's own", "count"),
        "unfinished": ("left out: no end", "count"),
        "no_answer": ("left out: no answer", "count"),
        "unsure": ("left out: an answer below generation.min_confidence", "count"),
        "examples": ("a few of D", ""),
    },
    "seed": {
        "day": _DAY,
        "night": _NIGHT,
        "sender": _SENDER,
        "step": _STEP,
        "steps": _STEPS,
        "loss": ("L_KS: divergence and reward together (equations 3 and 6)", ""),
        "divergence": ("teacher against student on what is new", "nats/token"),
        "divergence_replay": ("teacher against student on self-replay", "nats/token"),
        "policy_loss": ("reward term of L_KS alone", ""),
        "reward_mean": ("mixed reward r of the imitation term (equation 4)", ""),
        "reward_std": ("spread of the reward over completions", ""),
        "reward_sem": ("semantic part of the reward", ""),
        "reward_abs": ("edit-distance part of the reward (equation 5)", ""),
        "reward_failed": ("completions that could not be scored", "count"),
        "is_ratio_mean": ("mean importance ratio, learner over sampler", ""),
        "is_ratio_max": ("largest ratio", ""),
        "logprob_gap": ("mean |log-probability of learner - of sampler|", "nats/token"),
        "grad_norm": ("gradient norm before clipping", ""),
        "lr": ("learning rate", ""),
        "tokens_trained": ("tokens of the batch", "tokens"),
        "sequences": ("sequences of the batch", "count"),
        "seconds": _SECONDS,
    },
    "sample": {
        "day": _DAY,
        "night": _NIGHT,
        "sender": _SENDER,
        "round": ("sampling round within the night", ""),
        "tokens": ("tokens sampled", "tokens"),
        "sequences": ("sequences sampled", "count"),
        "failed": ("requests that gave no sample", "count"),
        "seconds": _SECONDS,
        "tokens_per_second": ("sampling throughput, all rollout workers", "tokens/s"),
        "truncated": ("share of sequences that hit the length limit", ""),
        "weights": ("state sampled from", ""),
    },
    "push": {
        "name": ("weight state: teacher or student", ""),
        "version": ("version that was pushed", ""),
        "bytes": ("size of the delta", "bytes"),
        "tensors": ("tensors in the delta", "count"),
        "seconds": ("time until every rollout worker had verified the version", "s"),
        "workers": ("rollout workers that took it", "count"),
        "probe_gap": ("largest |log-probability difference| on the probe prompt", "nats"),
        "pause": (
            "longest time that a worker did not sample: checking, copying and verifying",
            "s",
        ),
    },
    "flow": {
        "day": _DAY,
        "night": _NIGHT,
        "sender": _SENDER,
        "round": ("round of steps within the night", ""),
        "oldest": ("oldest version of the student in the round's samples", ""),
        "newest": ("newest one", ""),
        "trained_s": ("time the learner spent on the round", "s"),
        "learner_waited_s": (
            "time the learner stood still before it: for samples, and for "
            "pushes that it takes part in",
            "s",
        ),
        "rollouts_waited_s": (
            "time the rollouts stood still before it: for a version that is new enough",
            "s",
        ),
        "rewards_s": ("part of the rollouts' time: waiting for rewards", "s"),
    },
    "night": {
        "day": _DAY,
        "night": _NIGHT,
        "sender": _SENDER,
        "seconds": _SECONDS,
        "steps": _STEPS,
        "loss": ("last L_KS of the night", ""),
        "divergence": ("last divergence of the night", "nats/token"),
        "reward_mean": ("last mean reward of the night", ""),
        "tokens_sampled": ("sampled in the night", "tokens"),
        "tokens_trained": ("trained on in the night", "tokens"),
        "learner_idle": (
            "share of the night in which the learner stood still between its steps",
            "",
        ),
    },
    "evaluate": {
        "after": ('what the model had lived through: "base", "night 1", ...', ""),
        "method": ("sleep, sft or joint", ""),
        "row": ("accuracy per column (known and every day), closed book", "share correct"),
        "open_book": ("accuracy per column with the document in the context", "share correct"),
        "forms": (
            "accuracy per form of question about the newest day that its documents do not "
            "answer as they stand",
            "share correct",
        ),
        "n": ("questions per column", "count"),
        "seconds": _SECONDS,
    },
    "dream": {
        "night": _NIGHT,
        "round": _ROUND,
        "task": ("what it is about", ""),
        "number": ("of its task, from 0", ""),
        "seed": ("of its sampling", ""),
        "expert_seed": ("seed of the random experts", ""),
        "experts": ("level -> expert that its router also activated", ""),
        "text": ("what was written", ""),
        "logprob": ("mean log-probability of its tokens", "nats"),
        "reason": ("why it was given up; empty: it was not", ""),
        "importance": ("omega, from gradients", ""),
        "kept": ("whether it was tried out", ""),
        "tau_before": ("tau of the un-updated model", "0 to 1"),
        "taus": ("tau of its copies, one per training seed", "0 to 1"),
        "reward": ("equation 7", "0 or 1"),
        "gain": ("mean tau of its copies over that of the un-updated model", ""),
        "held_out": ("gain on a training seed that the reward never saw", ""),
    },
    "dreamed": {
        "night": _NIGHT,
        "round": _ROUND,
        "written": ("dreams", "count"),
        "kept": ("tried out", "count"),
        "rewarded": ("with reward 1", "count"),
        "failed": ("given up, or without a tau", "count"),
        "tau_before": ("mean tau of the un-updated model", "0 to 1"),
        "gain": ("mean gain of the dreams tried out", ""),
        "gain_rewarded": ("mean gain of the rewarded ones, on the seeds that chose them", ""),
        "gain_held_out": ("mean gain of the rewarded ones, on a seed that did not", ""),
    },
    "tried": {
        "night": _NIGHT,
        "round": _ROUND,
        "copies": ("isolated copies trained", "count"),
        "dreams": ("dreams tried out", "count"),
        "seconds": _SECONDS,
    },
    "policy": {
        "night": _NIGHT,
        "round": _ROUND,
        "step": _STEP,
        "steps": _STEPS,
        "loss": ("cross entropy of the dreaming policy on accepted dreams", "nats/token"),
    },
    "saved": {"night": _NIGHT, "path": ("its memory, from the run's folder", "")},
    "completion": {
        "when": ("before or after the nights", ""),
        "day": _DAY,
        "question": ("id of the question", ""),
        "prompt": ("what the model continued", ""),
        "answer": ("right answer", ""),
        "completion": ("what the model wrote", ""),
        "score": ("grade of the completion", "0 to 1"),
    },
    "baseline": {
        "method": ("sft or joint", ""),
        "day": _DAY,
        "step": _STEP,
        "steps": _STEPS,
        "loss": ("cross entropy of the baseline", "nats/token"),
    },
    "rolled_back": {
        "night": _NIGHT,
        "column": ("column that lost most", ""),
        "before": ("its accuracy", "share correct"),
        "after": ("its accuracy after the night", "share correct"),
        "allowed": ("evaluate.max_drop", "share correct"),
        "path": ("the rejected memory", ""),
    },
    "restarted": {
        "worker": (
            "what was started anew: one worker, or all of them after a learner was lost",
            "",
        ),
        "reason": ("how it was lost", ""),
    },
    "scaled": {
        "worker": ("rollout worker that came or went", ""),
        "joined": ("whether it came", ""),
        "workers": ("rollout workers in use now", "count"),
    },
    "failure": {
        "where": ("worker or call that failed", ""),
        "reason": ("why", ""),
        "count": ("how often", "count"),
    },
    "sink_failed": {"sink": ("sink that was switched off", ""), "reason": ("why, in one line", "")},
    "torn": {"line": ("number of the line that cannot be read", ""), "text": ("its beginning", "")},
    "done": {"seconds": _SECONDS, "status": ("ok or failed", ""), "reason": ("why it failed", "")},
}
"""kind -> field -> (meaning, unit). Every record also has `t`; `nonfinite` names values that were
NaN or infinite.
"""

NEEDED: dict[str, tuple[str, ...]] = {
    "wake": ("step",),
    "seed": ("step",),
    "baseline": ("method", "step"),
    "push": ("name",),
    "evaluate": ("after", "method", "row"),
    "completion": ("when", "day", "question", "answer", "completion"),
    "sink_failed": ("sink", "reason"),
    "dream": (
        "night",
        "round",
        "task",
        "number",
        "text",
        "reason",
        "importance",
        "kept",
        "tau_before",
        "taus",
        "reward",
        "gain",
        "held_out",
    ),
    "dreamed": (
        "night",
        "round",
        "written",
        "kept",
        "rewarded",
        "failed",
        "tau_before",
        "gain",
        "gain_rewarded",
        "gain_held_out",
    ),
}
"""kind -> fields that its readers cannot do without."""
_TEXTS = {
    "day",
    "method",
    "question",
    "prompt",
    "answer",
    "completion",
    "when",
    "name",
    "sink",
    "task",
    "text",
    "status",
}
_NUMBERS = {
    "steps",
    "loss",
    "divergence",
    "divergence_replay",
    "policy_loss",
    "reward_mean",
    "reward_sem",
    "reward_abs",
    "logprob_gap",
    "tokens_trained",
    "seconds",
    "tokens_per_second",
    "bytes",
    "score",
    "importance",
    "tau_before",
    "gain",
    "held_out",
    "gain_rewarded",
    "gain_held_out",
    "count",
    "written",
    "rewarded",
    "failed",
    "reward",
}
_SCORES = {"row", "open_book", "forms", "n"}
LARGEST = 2**63  # of a number in a record: nothing that is counted or measured comes near


def fault(record: dict[str, Any]) -> str:
    """The field of a record that its readers cannot use as it is; empty where there is none."""
    kind = record["kind"]
    missing = [name for name in ("t", *NEEDED.get(kind, ())) if name not in record]
    wrong = [name for name, value in record.items() if not _fits(kind, name, value)]
    return (missing + wrong + [""])[0]


def _fits(kind: str, name: str, value: Any) -> bool:
    if name in ("t", "step", "round", "number") or (name == "night" and value is not None):
        return _number(value)
    if value is None:  # what was not finite, and what could not be measured
        return name not in ("row", "after", "method", "taus", "nonfinite") and not (
            name in _TEXTS and name in NEEDED.get(kind, ())
        )
    if name in _TEXTS or (name == "after" and kind == "evaluate"):
        return isinstance(value, str)
    if name in _NUMBERS:
        return _number(value)
    if name in _SCORES:
        return isinstance(value, dict) and all(
            (v is None and name != "n") or _number(v) for v in value.values()
        )
    if name == "taus":
        return isinstance(value, list) and all(map(_number, value))
    return name != "nonfinite" or (
        isinstance(value, list) and all(isinstance(v, str) for v in value)
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and -LARGEST <= value <= LARGEST  # false for NaN
