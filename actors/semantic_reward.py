"""Semantic rewards r_sem of equation 4: a frozen model decides whether two continuations have the
same meaning (1) or not (0).

Both classes implement roles.Reward. A pair that cannot be scored is a Failure and does not affect
others. Suffixes: `_T` tokens of one text, `_B` texts of a batch, `_D` hidden units, `_N` pairs of
one call.
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
from sleep_rl.model.packing import pad_right

ENCODER_BATCH = 32  # texts per forward pass


def _from_pretrained(auto_class: Any, path: str, role: str, **options: Any) -> Any:
    """Return auto_class.from_pretrained(path). Raises InputError in which `role` names the
    object.
    """
    try:
        return auto_class.from_pretrained(path, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises many types
        raise InputError(
            f"reward.model: {role} {path} cannot be read ({one_line(error)})"
        ) from error


class PolicyText:
    """Decodes token ids with the policy's tokenizer. Raises InputError when it cannot be read."""

    def __init__(self, tokenizer_path: str):
        self._tokenizer = _from_pretrained(AutoTokenizer, tokenizer_path, "the policy's tokenizer")

    def decode(self, pair: Pair) -> tuple[str, str] | Failure:
        """Return (student's text, teacher's text) without special tokens.

        A Failure when one contains ids outside the vocabulary, or is empty.
        """
        student = self._decode("student", pair.student_T)
        if isinstance(student, Failure):
            return student
        teacher = self._decode("teacher", pair.teacher_T)
        if isinstance(teacher, Failure):
            return teacher
        return student, teacher

    def _decode(self, writer: str, ids_T: tuple[int, ...]) -> str | Failure:
        if not all(0 <= i < len(self._tokenizer) for i in ids_T):
            return Failure(
                f"the {writer}'s continuation has ids outside the policy's vocabulary", "reward"
            )
        text = self._tokenizer.decode(list(ids_T), skip_special_tokens=True).strip()
        return text or Failure(f"the {writer}'s continuation has no text", "reward")


class EncoderReward:
    """Rewards 1 if the cosine of both texts' mean hidden states is at least `threshold`, else 0.

    `model`: a Hugging Face encoder or decoder, or a sleep checkpoint; `tokenizer_path`: the
    policy's tokenizer; `device`: of the model. Raises InputError for a model or tokenizer that
    cannot be read.
    """

    def __init__(self, model: str, tokenizer_path: str, threshold: float, device: str = "cpu"):
        self._policy = PolicyText(tokenizer_path)
        self._threshold = threshold
        self._device = device
        if memory_folder.is_memory_folder(model):
            raise InputError(f"reward: a full model is needed, got the memory folder {model}")
        config = _from_pretrained(AutoConfig, model, "model")
        if config.model_type.startswith("sleep_"):
            self._model = checkpoints.load(model).model
        else:
            self._model = _from_pretrained(
                AutoModel, model, "model", dtype="auto", use_safetensors=True
            )
        self._tokenizer = _from_pretrained(AutoTokenizer, model, "tokenizer")
        self._model.eval().requires_grad_(False).to(device)
        self._max_tokens = min(
            self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", math.inf)
        )

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        """Return one value in {0, 1} or Failure per pair, in order."""
        decoded_N = [self._policy.decode(pair) for pair in pairs_N]
        decoded = [texts for texts in decoded_N if not isinstance(texts, Failure)]
        embeddings = self._embeddings([text for texts in decoded for text in texts])
        return [
            texts if isinstance(texts, Failure) else self._compare(*texts, embeddings)
            for texts in decoded_N
        ]

    def _embeddings(self, texts: list[str]) -> dict[str, Tensor]:
        """Return text -> embedding [D]; texts that are empty or too long for the encoder have
        none.
        """
        ids = {text: self._tokenizer(text)["input_ids"] for text in dict.fromkeys(texts)}
        fitting = [text for text in ids if 0 < len(ids[text]) <= self._max_tokens]
        embeddings: dict[str, Tensor] = {}
        for start in range(0, len(fitting), ENCODER_BATCH):
            batch = fitting[start : start + ENCODER_BATCH]
            embeddings |= zip(batch, self._embed([ids[text] for text in batch]), strict=True)
        return embeddings

    def _compare(
        self, student: str, teacher: str, embeddings: dict[str, Tensor]
    ) -> float | Failure:
        if student not in embeddings or teacher not in embeddings:
            return Failure(
                f"a text does not fit into the encoder's {self._max_tokens} tokens", "encoder"
            )
        cosine = torch.cosine_similarity(embeddings[student], embeddings[teacher], dim=0).item()
        if not math.isfinite(cosine):
            return Failure("the encoder's embedding is not finite", "encoder")
        return float(cosine >= self._threshold)

    @torch.inference_mode()
    def _embed(self, texts_B: list[list[int]]) -> Tensor:
        """Return the mean hidden state [B, D] of each text's tokens, in float64 so that equal texts
        reach a threshold of 1.
        """
        ids_BT, mask_BT = pad_right(texts_B, 0, self._device)
        hidden_BTD = self._model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        sum_BD = hidden_BTD.double().masked_fill(mask_BT[..., None] == 0, 0).sum(1)
        return sum_BD / mask_BT.sum(1, keepdim=True)

    def close(self) -> None:
        """Drop the model."""
        del self._model


class JudgeReward:
    """Rewards 1 if a frozen language model, prompted with `template`, gives the next token "yes" a
    higher probability than "no", else 0.

    `template`: contains {student} and {teacher}; `model`: a checkpoint that vLLM can serve, with a
    tokenizer; `tokenizer_path`: the policy's tokenizer; `dtype`, `engine`, `seed`,
    `tensor_parallel`: of the vLLM engine. Raises InputError for a template without both fields, a
    model that cannot be served, and a tokenizer whose first tokens of yes and no are the same.
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
        if "\0" not in self._prompt("\0", "") or "\0" not in self._prompt("", "\0"):
            raise InputError(
                f"reward.template: {{student}} and {{teacher}} are needed, got {template!r}"
            )
        self._policy = PolicyText(tokenizer_path)
        self._tokenizer = _from_pretrained(AutoTokenizer, model, "tokenizer")
        yes = self._first_ids("yes")
        no = self._first_ids("no")
        # without tokens that begin both words, such as a single space
        self._yes_ids = sorted(yes - no)
        self._no_ids = sorted(no - yes)
        if not self._yes_ids or not self._no_ids:
            raise InputError(f"reward: the tokenizer of judge {model} has no tokens for yes and no")
        # imported here, so that the process of an encoder does not load vLLM (10 s, 500 MB)
        from vllm import SamplingParams

        from actors.engine import Engine

        self._params = SamplingParams(
            max_tokens=1,
            temperature=0,
            logprob_token_ids=self._yes_ids + self._no_ids,
            detokenize=False,
        )
        self._engine = Engine(
            model,
            dtype=dtype,
            options=engine,
            seed=seed,
            tensor_parallel=tensor_parallel,
            memory=False,
        )

    def _prompt(self, student: str, teacher: str) -> str:
        try:
            return self._template.format(student=student, teacher=teacher)
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(
                f"reward.template: {{student}} and {{teacher}} are its only fields, got "
                f"{self._template!r}"
            ) from error

    def _first_ids(self, word: str) -> set[int]:
        """Return the first token ids of `word`, with and without a leading space."""
        pieces = (
            self._tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (word, " " + word)
        )
        return {ids[0] for ids in pieces if ids} - {self._tokenizer.unk_token_id}

    def score(self, pairs_N: list[Pair]) -> list[float | Failure]:
        """Return one value in {0, 1} or Failure per pair, in order."""
        results: list[float | Failure] = [Failure("the pair has no result", "judge")] * len(pairs_N)
        prompts: dict[int, list[int]] = {}  # index of the pair -> token ids
        for n, pair in enumerate(pairs_N):
            prompt_T = self._prompt_ids(pair)
            if isinstance(prompt_T, Failure):
                results[n] = prompt_T
            else:
                prompts[n] = prompt_T
        outputs = self._engine.generate(prompts.values(), [self._params] * len(prompts))
        for n, output in zip(prompts, outputs, strict=True):
            logprobs = output.outputs[0].logprobs[0]
            results[n] = self._verdict({i: entry.logprob for i, entry in logprobs.items()})
        return results

    def _prompt_ids(self, pair: Pair) -> list[int] | Failure:
        texts = self._policy.decode(pair)
        if isinstance(texts, Failure):
            return texts
        ids_T = self._tokenizer(self._prompt(*texts))["input_ids"]
        reason = self._engine.invalid_prompt(ids_T)
        if reason:
            return Failure(f"the judge's prompt cannot be used: {reason}", "judge")
        return ids_T

    def _verdict(self, logprobs: dict[int, float]) -> float | Failure:
        """Return 1 if yes is more probable than no, else 0; `logprobs`: token id -> nats."""
        yes, no = (
            torch.tensor([logprobs[i] for i in ids]).logsumexp(0).item()
            for ids in (self._yes_ids, self._no_ids)
        )
        if not math.isfinite(yes - no):
            return Failure("the judge's log-probabilities of yes and no are not finite", "judge")
        return float(yes > no)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()
