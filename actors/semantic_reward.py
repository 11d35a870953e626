"""Semantic rewards r_sem of equation 4: a frozen model decides whether two continuations mean the
same (1) or not (0).

Both implement contracts.Reward. A pair that cannot be scored is a Failure and never disturbs the
others.
Suffixes: `_T` tokens of one text, `_B` texts of a batch, `_D` hidden units, `_N` pairs of a call.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

from sleep_rl.contracts.errors import Failure, InputError, one_line
from sleep_rl.contracts.records import Pair
from sleep_rl.model import checkpoints, memory_folder

ENCODER_BATCH = 32  # texts per forward pass


def _read(what: str, path: str, reader: Any, **options: Any) -> Any:
    try:
        return reader.from_pretrained(path, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises many types for what a folder or a hub can lack
        raise InputError(
            f"reward.model: {what} {path} cannot be read ({one_line(error)})"
        ) from error


class PolicyText:
    """Turns a pair's token ids into text with the policy's tokenizer."""

    def __init__(self, tokenizer_path: str):
        self._tokenizer = _read("the policy's tokenizer", tokenizer_path, AutoTokenizer)

    def both(self, pair: Pair) -> tuple[str, str] | Failure:
        """(student, teacher) without special tokens; Failure when one has foreign ids or no
        text.
        """
        texts = []
        for who, ids_T in (("student", pair.student_T), ("teacher", pair.teacher_T)):
            if not all(0 <= i < len(self._tokenizer) for i in ids_T):
                return Failure(
                    f"the {who}'s continuation has ids outside the policy's vocabulary", "reward"
                )
            text = self._tokenizer.decode(list(ids_T), skip_special_tokens=True).strip()
            if not text:
                return Failure(f"the {who}'s continuation has no text", "reward")
            texts.append(text)
        return texts[0], texts[1]


class EncoderReward:
    """1 where the cosine of both texts' mean hidden states reaches `threshold`, else 0.

    `model`: a Hugging Face encoder or decoder, or a sleep checkpoint; `tokenizer_path`: the
    policy's tokenizer;
    `device`: where torch runs it. Raises InputError for a model or tokenizer that cannot be read.
    """

    def __init__(self, model: str, tokenizer_path: str, threshold: float, device: str = "cpu"):
        self._policy, self._threshold, self._device = PolicyText(tokenizer_path), threshold, device
        if memory_folder.is_memory_folder(model):
            raise InputError(f"reward: a full model is needed, got the memory folder {model}")
        config = _read("model", model, AutoConfig)
        if config.model_type.startswith("sleep_"):
            self._model = checkpoints.load(model).model
        else:
            self._model = _read("model", model, AutoModel, dtype="auto", use_safetensors=True)
        self._tokenizer = _read("tokenizer", model, AutoTokenizer)
        self._model.eval().requires_grad_(False).to(device)
        self._limit = min(
            self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", math.inf)
        )

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        """One value in {0, 1} or Failure per pair, in order."""
        both_N = [self._policy.both(pair) for pair in pairs_N]
        texts = list(
            dict.fromkeys(text for both in both_N if not isinstance(both, Failure) for text in both)
        )
        ids = {text: self._tokenizer(text)["input_ids"] for text in texts}
        fit = [text for text in texts if 0 < len(ids[text]) <= self._limit]
        vectors: dict[str, Tensor] = {}
        for start in range(0, len(fit), ENCODER_BATCH):
            batch = fit[start : start + ENCODER_BATCH]
            vectors |= zip(batch, self._embed([ids[text] for text in batch]), strict=True)
        return [
            both if isinstance(both, Failure) else self._compare(both, vectors) for both in both_N
        ]

    def _compare(self, both: tuple[str, str], vectors: dict[str, Tensor]) -> float | Failure:
        if not all(text in vectors for text in both):
            return Failure(
                f"a text does not fit into the encoder's {self._limit} tokens", "encoder"
            )
        cosine = torch.cosine_similarity(vectors[both[0]], vectors[both[1]], dim=0).item()
        if not math.isfinite(cosine):
            return Failure("the encoder's embedding is not finite", "encoder")
        return float(cosine >= self._threshold)

    @torch.inference_mode()
    def _embed(self, ids_BT: list[list[int]]) -> Tensor:
        """[B, D] mean over the real tokens' hidden states, in double: equal texts must reach a
        threshold of 1.
        """
        width = max(map(len, ids_BT))
        padded = torch.tensor(
            [ids + [0] * (width - len(ids)) for ids in ids_BT], device=self._device
        )
        mask = torch.tensor(
            [[1] * len(ids) + [0] * (width - len(ids)) for ids in ids_BT], device=self._device
        )
        hidden_BTD = self._model(input_ids=padded, attention_mask=mask).last_hidden_state.double()
        return hidden_BTD.masked_fill(mask[..., None] == 0, 0).sum(1) / mask.sum(1, keepdim=True)

    def close(self) -> None:
        """Drops the model."""
        del self._model


class JudgeReward:
    """1 where a frozen language model, asked by `template`, finds "yes" likelier than "no" as the
    next token, else 0.

    `template` holds {student} and {teacher}. `model` is anything vLLM serves, with a tokenizer;
    `tokenizer_path` is the policy's; `dtype`, `engine`, `seed` and `tensor_parallel` are those of
    the vLLM engine. Raises InputError for a template without both fields, a model that cannot be
    served, and a tokenizer that cannot tell yes from no.
    """

    def __init__(
        self,
        model: str,
        tokenizer_path: str,
        template: str,
        *,
        dtype: str,
        engine: dict,
        seed: int = 0,
        tensor_parallel: int = 1,
    ):
        self._template = template
        if "\0" not in self._ask("\0", "") or "\0" not in self._ask("", "\0"):
            raise InputError(
                f"reward.template: {{student}} and {{teacher}} are needed, got {template!r}"
            )
        self._policy = PolicyText(tokenizer_path)
        self._tokenizer = _read("tokenizer", model, AutoTokenizer)
        yes, no = self._first_ids("yes"), self._first_ids("no")
        # A token that begins both words (a lone space) tells nothing.
        self._yes, self._no = sorted(yes - no), sorted(no - yes)
        if not self._yes or not self._no:
            raise InputError(f"reward: the tokenizer of judge {model} has no tokens for yes and no")
        from vllm import (
            SamplingParams,  # here, so that an encoder's process does not load vLLM (10 s, 500 MB)
        )

        from actors.engine import Engine

        self._params = SamplingParams(
            max_tokens=1, temperature=0, logprob_token_ids=self._yes + self._no, detokenize=False
        )
        self._engine = Engine(
            model,
            dtype=dtype,
            options=engine,
            seed=seed,
            tensor_parallel=tensor_parallel,
            memory=False,
        )

    def _ask(self, student: str, teacher: str) -> str:
        try:
            return self._template.format(student=student, teacher=teacher)
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(
                f"reward.template: {{student}} and {{teacher}} are its only fields, got "
                f"{self._template!r}"
            ) from error

    def _first_ids(self, word: str) -> set[int]:
        pieces = (
            self._tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (word, " " + word)
        )
        return {ids[0] for ids in pieces if ids} - {self._tokenizer.unk_token_id}

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        """One value in {0, 1} or Failure per pair, in order."""
        result: list[Any] = [self._policy.both(pair) for pair in pairs_N]
        prompts: dict[int, list[int]] = {}
        for n, both in enumerate(result):
            if isinstance(both, Failure):
                continue
            ids_T = self._tokenizer(self._ask(*both))["input_ids"]
            reason = self._engine.refusal(ids_T)
            if reason:
                result[n] = Failure(f"the judge's prompt cannot be used: {reason}", "judge")
            else:
                prompts[n] = ids_T
        outputs = self._engine.generate(prompts.values(), [self._params] * len(prompts))
        for n, output in zip(prompts, outputs, strict=True):
            result[n] = self._verdict(
                {i: entry.logprob for i, entry in output.outputs[0].logprobs[0].items()}
            )
        return result

    def _verdict(self, logprobs: dict[int, float]) -> float | Failure:
        yes, no = (
            torch.tensor([logprobs[i] for i in ids]).logsumexp(0).item()
            for ids in (self._yes, self._no)
        )
        if not math.isfinite(yes - no):
            return Failure("the judge's log-probabilities of yes and no are not finite", "judge")
        return float(yes > no)

    def close(self) -> None:
        """Stops the engine."""
        self._engine.close()
