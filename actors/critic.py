"""The critic: evaluates dreams on isolated copies of the model (roles.Critic; paper.md section 4,
step 3).

Copies are LoRA adapters. A batch of them is trained together in torch, and answers in one batch of
a vLLM engine, each under an adapter id that is never reused. Suffixes: `_N` trials of one call.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from vllm.lora.request import LoRARequest

from actors.batched_lora import Copies, train
from actors.engine import Engine
from actors.memory_access import shared_folder
from actors.weight_states import WeightStates
from sleep_rl.contracts.errors import Failure, InputError, RunError
from sleep_rl.contracts.records import LoadReport, Sampling, Trial, Weights
from sleep_rl.model import checkpoints
from sleep_rl.model.memory import tensors_of, write_tensors
from sleep_rl.model.tensor_digest import digest

Answers = tuple[tuple[int, ...], ...]
"""Token ids of one copy's answer to each of its questions."""
THREADS = 1
"""Of torch: critics share the cores of their node with each other and with idle workers."""


class CriticWorker:
    """Implements roles.Critic with a vLLM engine that loads LoRA adapters, and the same model in
    torch, on which the adapters are trained.

    Arguments: `rank` and `alpha`, of the copies; `copies_per_pass`, copies in one forward pass and
    adapters that the engine holds at once; `device`, of torch; the others as in RolloutWorker.
    Raises InputError as RolloutWorker, and for a rank that vLLM does not support.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        dtype: str,
        engine: dict,
        seed: int,
        rank: int,
        alpha: float,
        copies_per_pass: int,
        device: str = "cpu",
        probe_tolerance: float = 1e-3,
    ):
        torch.set_num_threads(THREADS)
        lora = {
            "enable_lora": True,
            "max_loras": copies_per_pass,
            "max_cpu_loras": copies_per_pass,
            "max_lora_rank": max(rank, 8),
        }
        self.engine = Engine(checkpoint, dtype=dtype, options={**engine, **lora}, seed=seed)
        self.states = WeightStates(self.engine, probe_tolerance)
        self._model = checkpoints.load(checkpoint, dtype=getattr(torch, dtype)).to(device)
        self._pad = self._model.config.pad_token_id or 0
        self._rank = rank
        self._alpha = alpha
        self._copies_per_pass = copies_per_pass
        self._next_adapter_id = 1

    # ---- weights

    def load(self, weights: Weights) -> LoadReport:
        """Load a pushed version into the engine and into the torch model (roles.Critic)."""
        report = self.states.load(weights)
        write_tensors(self._model, self.states.tensors(weights.name))
        return report

    def held(self) -> dict[str, int]:
        """Return state name -> version that copies can be made of (roles.Critic)."""
        return self.states.versions()

    def drop_caches(self) -> None:
        """Reset the engine's prefix cache (roles.Critic)."""
        self.engine.reset_prefix_cache()

    def digest(self) -> str:
        """Return a digest of all weights of the torch model and of the engine's memory
        (roles.Critic).

        The engine's base weights are not included, because vLLM repacks them on CPU; the probe of a
        push verifies them.
        """
        whole = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self._model.state_dict().items()):
            whole.update(f"{name} {digest(tensor)}".encode())
        memory_keys = list(tensors_of(self._model))
        for key, value in sorted(self.engine.memory_digests(memory_keys)[0].items()):
            whole.update(f"{key} {value}".encode())
        return whole.hexdigest()

    # ---- trials

    def try_out(
        self, trials_N: list[Trial], name: str, version: int, sampling: Sampling
    ) -> list[Answers | Failure]:
        """Return each trial's answers or a Failure, in order (roles.Critic).

        Copies of similar length are trained together in batches of `copies_per_pass`, and all
        questions of a batch are generated together. Raises InputError for a temperature above 0.
        """
        if sampling.temperature != 0:
            raise InputError(
                f"critic: answers are greedy, temperature 0 is allowed, got {sampling.temperature}"
            )
        self.states.activate(name, version)
        results: list[Answers | Failure] = [Failure("the trial has no result", "critic")] * len(
            trials_N
        )
        untrained: list[int] = []
        trained: list[int] = []
        for n, trial in enumerate(trials_N):
            reason = self._invalid_trial(trial)
            if reason:
                results[n] = Failure(reason, "critic")
            elif trial.rows:
                trained.append(n)
            else:
                untrained.append(n)

        no_adapters: list[LoRARequest | None] = [None] * len(untrained)
        answers_N = self._answer([trials_N[n] for n in untrained], no_adapters, sampling)
        for n, answers in zip(untrained, answers_N, strict=True):
            results[n] = answers

        trained.sort(key=lambda n: (_padded_tokens(trials_N[n]), n))
        size = self._copies_per_pass
        batches = [trained[start : start + size] for start in range(0, len(trained), size)]
        answered = self._train_and_answer(
            [[trials_N[n] for n in batch] for batch in batches], sampling
        )
        for batch, answers_N in zip(batches, answered, strict=True):
            for n, answers in zip(batch, answers_N, strict=True):
                results[n] = answers
        return results

    def _invalid_trial(self, trial: Trial) -> str:
        """Return why a trial is invalid; empty when it is valid."""
        if not trial.questions:
            return "the trial has no questions"
        if trial.rows and (trial.epochs < 1 or not trial.lr > 0):
            return f"epochs from 1 and lr above 0 are allowed, got {trial.epochs} and {trial.lr}"
        for prompt, completion in trial.rows:
            if not prompt or not completion:
                return "a training row without prompt or completion"
            if reason := self.engine.invalid_prompt((prompt + completion)[:-1]):
                return f"a training row: {reason}"
        errors = (self.engine.invalid_prompt(question) for question in trial.questions)
        return next(filter(None, errors), "")

    def _train_and_answer(
        self, batches: list[list[Trial]], sampling: Sampling
    ) -> Iterator[list[Answers | Failure]]:
        """Yield the answers of each batch's copies.

        While the engine answers for one batch, torch trains the next one in another thread.
        """
        with ThreadPoolExecutor(
            1, initializer=torch.set_num_threads, initargs=(THREADS,)
        ) as executor:

            def start_training(batch: list[Trial]) -> Future:
                return executor.submit(
                    train, self._model, batch, self._rank, self._alpha, self._pad
                )

            pending = [start_training(batch) for batch in batches[:1]]
            for number, batch in enumerate(batches):
                copies, loss_N = pending.pop().result()
                pending = [start_training(coming) for coming in batches[number + 1 : number + 2]]
                yield self._answer_with_copies(batch, copies, loss_N, sampling)

    def _answer_with_copies(
        self, trials_N: list[Trial], copies: Copies, loss_N: list[float], sampling: Sampling
    ) -> list[Answers | Failure]:
        """Load the copies as adapters, generate their answers, and unload them.

        `loss_N`: last loss of each copy. A copy whose loss is not finite, or whose adapter cannot
        be loaded, is a Failure.
        """
        results: list[Answers | Failure] = [
            Failure(f"the copy's loss became {loss}", "critic") for loss in loss_N
        ]
        loaded: dict[int, LoRARequest] = {}
        with shared_folder() as folder:
            try:
                for n, loss in enumerate(loss_N):
                    if not math.isfinite(loss):
                        continue
                    adapter = self._save_adapter(copies, n, Path(folder))
                    try:
                        self.engine.add_adapter(adapter)
                        loaded[n] = adapter
                    except RunError as error:
                        results[n] = Failure(f"its adapter could not be loaded: {error}", "critic")
                answers_N = self._answer(
                    [trials_N[n] for n in loaded], list(loaded.values()), sampling
                )
            finally:
                for adapter in loaded.values():
                    self.engine.remove_adapter(adapter)
        for n, answers in zip(loaded, answers_N, strict=True):
            results[n] = answers
        return results

    def _save_adapter(self, copies: Copies, number: int, folder: Path) -> LoRARequest:
        adapter_id = self._next_adapter_id
        self._next_adapter_id += 1
        name = f"dream-{adapter_id}"
        copies.save(number, folder / name)
        return LoRARequest(name, adapter_id, str(folder / name))

    def _answer(
        self, trials_N: list[Trial], adapters_N: list[LoRARequest | None], sampling: Sampling
    ) -> list[Answers | Failure]:
        """Generate the answers to all questions of all trials in one batch, with their adapters."""
        prompts: list[tuple[int, ...]] = []
        adapters: list[LoRARequest | None] = []
        for trial, adapter in zip(trials_N, adapters_N, strict=True):
            prompts += trial.questions
            adapters += [adapter] * len(trial.questions)
        params = [self.engine.sampling_params(len(prompt), 0, sampling) for prompt in prompts]
        outputs = iter(self.engine.generate(prompts, params, adapters))
        results: list[Answers | Failure] = []
        for trial in trials_N:
            completions = [next(outputs).outputs[0] for _ in trial.questions]
            reasons = [c.finish_reason for c in completions]
            unfinished = [reason for reason in reasons if reason not in ("stop", "length")]
            if unfinished:
                results.append(Failure(f"vLLM ended a question with {unfinished[0]}", "critic"))
            else:
                results.append(tuple(tuple(c.token_ids) for c in completions))
        return results

    def close(self) -> None:
        """Close the engine; no weights are held afterwards."""
        self.states.clear()
        self.engine.close()


def _padded_tokens(trial: Trial) -> int:
    """Return the tokens of the longest training row times the steps: an estimate of the time."""
    longest = max(len(prompt) + len(completion) for prompt, completion in trial.rows)
    return longest * len(trial.rows) * trial.epochs
