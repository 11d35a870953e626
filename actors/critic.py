"""The critic: tries dreams out on isolated copies of the model (roles.Critic; paper.md section 4,
step 3).

Copies are trained in torch, many at once, and answer in one vLLM engine, in one batch, each under
an adapter id that is never used again. Suffixes: `_N` trials of one call.
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
"""Token ids that one copy answers to each of its questions."""


class CriticWorker:
    """Implements roles.Critic: an engine that takes LoRA adapters, and the same model in torch, of
    which the copies are made.

    `rank` and `alpha` of the copies; `copies_per_pass`: copies of one forward pass, and adapters
    that the engine holds at once; `device` and `threads` of torch; the rest as in RolloutWorker.
    Raises InputError as RolloutWorker does, and for a rank that vLLM does not know.
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
        threads: int = 1,
    ):
        torch.set_num_threads(threads)
        self._threads = threads
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
        """Take a pushed version into the engine and into the model that copies are made of
        (roles.Critic).
        """
        report = self.states.load(weights)
        write_tensors(self._model, self.states.tensors(weights.name))
        return report

    def held(self) -> dict[str, int]:
        """Return name -> version that copies can be made of now."""
        return self.states.versions()

    def forget(self) -> None:
        """Drop the cached keys and values of earlier questions."""
        self.engine.reset_prefix_cache()

    def digest(self) -> str:
        """Return a digest of every weight of the torch model and of the engine's memory.

        vLLM's own base weights are packed on CPU; a push's probe verifies them.
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
        """Return what each trial's copy answers (roles.Critic).

        Copies of about equal length are trained together, as a stack; all questions of a stack are
        one batch of the engine. Raises InputError for answers that are not greedy.
        """
        if sampling.temperature != 0:
            raise InputError(
                f"critic: answers are greedy, temperature 0 is allowed, got {sampling.temperature}"
            )
        self.states.activate(name, version)
        results: list[Answers | Failure] = [Failure("was not tried", "critic")] * len(trials_N)
        untrained: list[int] = []
        trained: list[int] = []
        for n, trial in enumerate(trials_N):
            reason = self._refusal(trial)
            if reason:
                results[n] = Failure(reason, "critic")
            elif trial.rows:
                trained.append(n)
            else:
                untrained.append(n)

        no_adapters: list[LoRARequest | None] = [None] * len(untrained)
        answers_N = self._ask([trials_N[n] for n in untrained], no_adapters, sampling)
        for n, answers in zip(untrained, answers_N, strict=True):
            results[n] = answers

        trained.sort(key=lambda n: (_padded_tokens(trials_N[n]), n))
        size = self._copies_per_pass
        stacks = [trained[start : start + size] for start in range(0, len(trained), size)]
        answered = self._train_and_ask([[trials_N[n] for n in stack] for stack in stacks], sampling)
        for stack, answers_N in zip(stacks, answered, strict=True):
            for n, answers in zip(stack, answers_N, strict=True):
                results[n] = answers
        return results

    def _refusal(self, trial: Trial) -> str:
        """Return why a trial cannot be made; empty when it can."""
        if not trial.questions:
            return "nothing is asked"
        if trial.rows and (trial.epochs < 1 or not trial.lr > 0):
            return f"epochs from 1 and lr above 0 are allowed, got {trial.epochs} and {trial.lr}"
        for prompt, completion in trial.rows:
            if not prompt or not completion:
                return "a training row without prompt or completion"
            if reason := self.engine.refusal((prompt + completion)[:-1]):
                return f"a training row: {reason}"
        refusals = (self.engine.refusal(question) for question in trial.questions)
        return next(filter(None, refusals), "")

    def _train_and_ask(
        self, stacks: list[list[Trial]], sampling: Sampling
    ) -> Iterator[list[Answers | Failure]]:
        """Yield the answers of each stack's copies.

        While the engine answers for one stack, torch trains the next in a thread of its own.
        """
        with ThreadPoolExecutor(
            1, initializer=torch.set_num_threads, initargs=(self._threads,)
        ) as executor:

            def start_training(stack: list[Trial]) -> Future:
                return executor.submit(
                    train, self._model, stack, self._rank, self._alpha, self._pad
                )

            pending = [start_training(stack) for stack in stacks[:1]]
            for number, stack in enumerate(stacks):
                copies, loss_N = pending.pop().result()
                pending = [start_training(coming) for coming in stacks[number + 1 : number + 2]]
                yield self._ask_copies(stack, copies, loss_N, sampling)

    def _ask_copies(
        self, trials_N: list[Trial], copies: Copies, loss_N: list[float], sampling: Sampling
    ) -> list[Answers | Failure]:
        """Load the copies as adapters, ask them, and unload them; `loss_N`: each one's last loss.

        A copy whose loss is not finite, or whose adapter is not loaded, is a Failure.
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
                        results[n] = Failure(f"its adapter was not loaded: {error}", "critic")
                answers_N = self._ask(
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

    def _ask(
        self, trials_N: list[Trial], adapters_N: list[LoRARequest | None], sampling: Sampling
    ) -> list[Answers | Failure]:
        """Ask all questions of all trials in one batch, each through its copy's adapter."""
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
        """Stop the engine; no weights are held afterwards."""
        self.states.clear()
        self.engine.close()


def _padded_tokens(trial: Trial) -> int:
    """Return the tokens of the longest training row times the steps, which the time follows."""
    longest = max(len(prompt) + len(completion) for prompt, completion in trial.rows)
    return longest * len(trial.rows) * trial.epochs
