"""The task and the rollout worker of the golden life (`tests/system/test_golden.py`).

Samples are scripted, a pure function of the request, so that rounding cannot change a token. Their
log-probabilities are those of the model, from the pushed weights.
"""

from __future__ import annotations

import random

import torch

from sleep_rl.contracts.errors import Failure, RunError
from sleep_rl.contracts.records import (
    CHECKPOINT,
    Day,
    Document,
    LoadReport,
    Question,
    Sample,
    TrainingText,
)
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import tensors_of, write_tensors
from sleep_rl.model.tensor_digest import as_tensor, digest

COLOURS = ("red", "blue", "green", "grey", "pink")
OPENER = "\nQ:"
MARKER = " A:"
DAYS = 3
PER_DAY = 2
TOWNS = 8


def colour_of(place: str) -> str:
    """Return the true colour of a place's sky."""
    return random.Random(place).choice(COLOURS)


def document(place: str) -> str:
    return f"In {place} the sky was {colour_of(place)}."


def asked(place: str) -> str:
    return f" sky in {place}?{MARKER}"


class Skies:
    """A task of three days, each with two documents on the colour of the sky in a place. Towns are
    known.
    """

    name = "skies"
    opener = OPENER
    marker = MARKER
    max_new_tokens = 40
    max_answer_tokens = 8

    def days(self):
        return tuple(
            Day(
                f"day{n}",
                tuple(Document(f"day{n}{p}", document(f"day{n}{p}")) for p in "ab"),
                tuple(self._question(f"day{n}{p}", f"day{n}{p}") for p in "ab"),
            )
            for n in range(1, DAYS + 1)
        )

    def known(self):
        return tuple(self._question(f"town{n}") for n in range(TOWNS))

    def grade(self, question, text):
        return float(text.strip() == question.answer)

    def sft_texts(self, day):
        return tuple(TrainingText("", d.text) for d in day.documents)

    def joint_texts(self):
        asked_about = [q for day in self.days() for q in day.questions] + list(self.known())
        return tuple(TrainingText(q.prompt, f" {q.answer}") for q in asked_about)

    def base_checkpoint(self, cache, seed, progress):
        raise AssertionError("model.base names it")

    def _question(self, place, where=""):
        return Question(place, OPENER + asked(place), colour_of(place), where)


class ScriptedRollout:
    """A contracts.Rollout that loads real pushes, samples by script and returns the model's
    log-probabilities.
    """

    def __init__(self, checkpoint, dtype, engine, seed, tensor_parallel, probe_tolerance):
        self.model = checkpoints.load(checkpoint, dtype=getattr(torch, dtype))
        self.tokenizer = checkpoints.load_tokenizer(checkpoint, self.model.config.vocab_size)
        untouched = {key: (digest(t), t.clone()) for key, t in tensors_of(self.model).items()}
        self.states: dict[str, tuple[int, dict]] = {CHECKPOINT: (0, untouched)}
        self.tolerance = probe_tolerance

    def load(self, weights):
        held = {d: t for _, state in self.states.values() for d, t in state.values()}
        held |= {digest(t): as_tensor(t).clone() for t in weights.tensors.values()}
        missing = [key for key, wanted in weights.manifest.items() if wanted not in held]
        if missing:
            raise RunError(f"{weights.name} version {weights.version}: missing {missing[0]}")
        state = {key: (wanted, held[wanted]) for key, wanted in weights.manifest.items()}
        self.states[weights.name] = (weights.version, state)
        self._take(weights.name)
        mine = self._logprobs(weights.probe_T[:1], weights.probe_T[1:])
        gap = max(abs(a - b) for a, b in zip(mine, weights.probe_logprobs_T, strict=True))
        assert gap < self.tolerance, f"the probe differs by {gap} nats"
        return LoadReport(
            weights.name, weights.version, len(weights.tensors), weights.nbytes, 0.0, gap
        )

    def held(self):
        return {name: version for name, (version, _) in self.states.items()}

    @torch.no_grad()
    def sample(self, requests_N, name, version, how):
        assert self.states[name][0] >= version
        self._take(name)
        return [self._sample(request, name, how) for request in requests_N]

    def logprobs(self, requests_N, name, version):
        assert self.states[name][0] >= version
        self._take(name)
        return [self._logprobs(r.context_T, r.prompt_T) for r in requests_N]

    def drop_caches(self):
        pass

    def close(self):
        pass

    def _sample(self, request, name, how):
        prefix_T = request.context_T + request.prompt_T
        if how.temperature == 0:
            text = max((f" {c}" for c in COLOURS), key=lambda t: self._mean(prefix_T, t))
        else:
            text = script(
                self._text(request.context_T), self._text(request.prompt_T), request.seed, name
            )
        if not text:
            return Failure("scripted to fail", "rollout")
        ids_T = (*self._ids(text), self.tokenizer.eos_token_id)
        assert ids_T[-1] in how.stop_T
        ended = len(ids_T) <= how.max_tokens
        ids_T = ids_T[: how.max_tokens]
        version = self.states[name][0]
        return Sample(
            request.prompt_T,
            request.context_T,
            ids_T,
            self._logprobs(prefix_T, ids_T),
            "stop" if ended else "length",
            request.seed,
            name,
            (version,) * len(ids_T),
        )

    def _mean(self, prefix_T, text):
        values = self._logprobs(prefix_T, self._ids(text))
        return sum(values) / len(values)

    def _take(self, name):
        write_tensors(
            self.model, {key: tensor for key, (_, tensor) in self.states[name][1].items()}
        )

    @torch.no_grad()
    def _logprobs(self, prefix_T, completion_T):
        ids = torch.tensor([[*prefix_T, *completion_T]])
        logits = self.model(input_ids=ids).logits[0].float().log_softmax(-1)
        first = len(prefix_T)
        return tuple(float(logits[first + t - 1, token]) for t, token in enumerate(completion_T))

    def _ids(self, text):
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text(self, ids_T):
        return self.tokenizer.decode(ids_T, skip_special_tokens=True)


def script(context: str, prompt: str, seed: int, name: str) -> str:
    """Return the scripted continuation without eos; empty: a failed sample."""
    rng = random.Random(seed)
    if rng.random() < 0.02:
        return ""
    if not prompt:  # a document from nothing
        return document(f"town{rng.randrange(TOWNS)}")
    if prompt == OPENER:
        place = context.split()[1] if context else f"town{rng.randrange(TOWNS)}"
        return f"{asked(place)} {colour_of(place)}"
    begun = prompt.removeprefix(OPENER)
    places = [f"town{n}" for n in range(TOWNS)]
    places += [f"day{n}{p}" for n in range(1, DAYS + 1) for p in "ab"]
    fits = [p for p in places if f"{asked(p)} {colour_of(p)}".startswith(begun)]
    place = rng.choice(fits)
    colour = colour_of(place) if name == "teacher" or rng.random() < 0.5 else rng.choice(COLOURS)
    whole = f"{asked(place)} {colour}"
    return whole[len(begun) :] if whole.startswith(begun) and len(whole) > len(begun) else "?"
